"""Data: datasets by name, the mapper that makes samples of them, and the loaders that training and tests draw from."""

from .. import needs_detectron2  # noqa: F401
from .classification_mapper import ClassificationMapper, image_transform
from .datasets import (
    check_categories,
    check_masks,
    coco_dataset,
    get_dataset_dicts,
    get_sem_seg_dicts,
    image_folder,
    imagenet_synsets,
    num_classes,
    num_folders,
    register_coco,
    register_digits,
    register_digits_panoptic,
    register_digits_scenes,
    register_image_folder,
    register_imagenet,
    register_images,
    register_sem_seg,
    sem_seg_dataset,
)
from .loader import Loader, build_test_loader, build_train_loader
from .mapper import DetectionMapper
from .sampler import TrainBatchSampler
from .sem_seg_mapper import SemanticMapper

__all__ = [
    "ClassificationMapper",
    "DetectionMapper",
    "Loader",
    "SemanticMapper",
    "TrainBatchSampler",
    "build_test_loader",
    "build_train_loader",
    "check_categories",
    "check_masks",
    "coco_dataset",
    "get_dataset_dicts",
    "get_sem_seg_dicts",
    "image_folder",
    "image_transform",
    "imagenet_synsets",
    "num_classes",
    "num_folders",
    "register_coco",
    "register_digits",
    "register_digits_panoptic",
    "register_digits_scenes",
    "register_image_folder",
    "register_imagenet",
    "register_images",
    "register_sem_seg",
    "sem_seg_dataset",
]
