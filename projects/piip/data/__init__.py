"""Data: datasets by name, the mapper that makes samples of them, and the loaders that training and tests draw from."""

from .. import needs_detectron2  # noqa: F401
from .datasets import (
    check_categories,
    check_masks,
    coco_dataset,
    get_dataset_dicts,
    num_classes,
    register_coco,
    register_digits_scenes,
)
from .loader import Loader, build_test_loader, build_train_loader
from .mapper import DetectionMapper
from .sampler import TrainBatchSampler

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
