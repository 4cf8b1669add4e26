"""Evaluation: Detectron2's evaluators, built so that the order of use does not matter."""

from .. import needs_detectron2  # noqa: F401
from .classification import ClassificationEvaluator, CorruptionEvaluator, build_classification_evaluator
from .coco import build_coco_evaluator
from .panoptic import PanopticEvaluator
from .sem_seg import build_sem_seg_evaluator

__all__ = [
    "ClassificationEvaluator",
    "CorruptionEvaluator",
    "PanopticEvaluator",
    "build_classification_evaluator",
    "build_coco_evaluator",
    "build_sem_seg_evaluator",
]
