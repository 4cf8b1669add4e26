"""Data: datasets by name, the mapper that makes samples of them, and the loaders that training and tests draw from."""

from ..env import require_detectron2

require_detectron2()

from piip.data.datasets import (
    check_categories,
    check_masks,
    coco_dataset,
    get_dataset_dicts,
    num_classes,
    register_coco,
    register_digits_scenes,
)
from piip.data.loader import Loader, build_test_loader, build_train_loader
from piip.data.mapper import DetectionMapper
from piip.data.sampler import TrainBatchSampler

__all__ = [
    "DetectionMapper",
    "Loader",
    "TrainBatchSampler",
    "build_test_loader",
    "build_train_loader",
    "check_categories",
    "check_masks",
    "coco_dataset",
    "get_dataset_dicts",
    "num_classes",
    "register_coco",
    "register_digits_scenes",
]
