"""Meta-architectures that Detectron2 lacks."""

from .dino import DINO
from .dino_denoising import ContrastiveDenoising
from .dino_losses import DINOCriterion
from .dino_transformer import DINOTransformer
from .image_classifier import ImageClassifier
from .semantic_segmentor import SemanticSegmentor

__all__ = ["DINO", "ContrastiveDenoising", "DINOCriterion", "DINOTransformer", "ImageClassifier", "SemanticSegmentor"]
