"""Models as files that other programs run: ``torch.export`` programs and ONNX graphs."""

from .. import needs_detectron2  # noqa: F401
from .export import SUFFIXES, export_model
from .networks import PARTS, Network, network_of

__all__ = ["PARTS", "SUFFIXES", "Network", "export_model", "network_of"]
