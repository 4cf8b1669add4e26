"""Evaluation: Detectron2's evaluators, built so that the order of use does not matter."""

from piip.evaluation.coco import build_coco_evaluator

__all__ = ["build_coco_evaluator"]
