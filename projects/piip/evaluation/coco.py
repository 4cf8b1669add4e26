"""COCO's average precision through Detectron2's evaluator."""

from __future__ import annotations

import logging
import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..data import get_dataset_dicts

__all__ = ["build_coco_evaluator"]

logger = logging.getLogger(__name__)


def build_coco_evaluator(dataset_name: str, output_dir: str | None = None) -> COCOEvaluator:
    """Makes the evaluator of a dataset; the dataset need not have been loaded before.

    Where the annotations have no masks, only boxes are evaluated.

    Args:
        dataset_name: a registered dataset.
        output_dir: where predictions are written, as ``coco_instances_results.json``.

    Raises:
        DataError: if the dataset is unknown or not there.
    """
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file is None or not os.path.exists(json_file):
        get_dataset_dicts(dataset_name, filter_empty=False)  # makes its files, or says what is missing
    evaluator = COCOEvaluator(dataset_name, output_dir=output_dir)
    annotations = evaluator._coco_api.dataset.get("annotations", ())
    if annotations and not any(annotation.get("segmentation") for annotation in annotations):
        logger.warning("The annotations of dataset %r have no masks: only boxes are evaluated.", dataset_name)
        evaluator._tasks = ("bbox",)
    return evaluator
