"""Meta-architectures that Detectron2 lacks."""

from .dino import DINO
from .dino_denoising import ContrastiveDenoising
from .dino_losses import DINOCriterion
from .dino_transformer import DINOTransformer

__all__ = ["DINO", "ContrastiveDenoising", "DINOCriterion", "DINOTransformer"]
