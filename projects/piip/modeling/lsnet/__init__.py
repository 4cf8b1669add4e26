"""LSNet: one body, and its faces as Detectron2 backbone and as classifier with timm's interface."""

from .backbone import LSNet
from .body import STRIDES, VARIANTS, LSNetBody
from .classifier import LSNetClassifier

__all__ = ["STRIDES", "VARIANTS", "LSNet", "LSNetBody", "LSNetClassifier"]
