"""Heads that label every pixel, for Detectron2's ``SemanticSegmentor`` and ``PanopticFPN``."""

from ... import needs_detectron2  # noqa: F401
from .loss import pixel_loss
from .semantic_fpn import SemanticFPNHead
from .upernet import FCNHead, UPerNetHead

__all__ = ["FCNHead", "SemanticFPNHead", "UPerNetHead", "pixel_loss"]
