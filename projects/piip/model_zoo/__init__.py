"""Configs and models by name, from a clone or an installed wheel.

Names are paths below ``configs/``, e.g. ``COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py``.
"""

from .. import needs_detectron2  # noqa: F401
from .zoo import get, get_config, list_configs

__all__ = ["get", "get_config", "list_configs"]
