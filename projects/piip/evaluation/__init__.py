"""Evaluation: Detectron2's evaluators, built so that the order of use does not matter."""

from .. import needs_detectron2  # noqa: F401
from .coco import build_coco_evaluator

__all__ = ["build_coco_evaluator"]
