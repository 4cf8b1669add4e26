"""Intersection over union of label maps through Detectron2's evaluator."""

from __future__ import annotations

from detectron2.evaluation import SemSegEvaluator

from ..data.datasets.sem_seg import get_sem_seg_dicts

__all__ = ["build_sem_seg_evaluator"]


def build_sem_seg_evaluator(dataset_name: str, output_dir: str | None = None) -> SemSegEvaluator:
    """Makes the evaluator of a dataset: mIoU, fwIoU, mACC, pACC; the dataset need not have been loaded before.

    Args:
        dataset_name: a registered dataset.
        output_dir: where predictions are written, as ``sem_seg_predictions.json``.

    Raises:
        DataError: if the dataset is unknown or not there.
    """
    get_sem_seg_dicts(dataset_name)  # makes its files, or says what is missing
    return SemSegEvaluator(dataset_name, output_dir=output_dir)
