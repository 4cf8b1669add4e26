"""Datasets by name. Importing this registers the bundled ones and ImageNet, as Detectron2 registers COCO."""

from .coco import (
    check_categories,
    check_masks,
    coco_dataset,
    get_dataset_dicts,
    num_classes,
    register_coco,
)
from .digits import register_digits
from .digits_panoptic import register_digits_panoptic
from .digits_scenes import generate_digits_scenes, register_digits_scenes
from .image_folder import image_folder, num_folders, register_image_folder, register_images
from .imagenet import imagenet_synsets, register_imagenet
from .sem_seg import get_sem_seg_dicts, register_sem_seg, sem_seg_dataset

__all__ = [
    "check_categories",
    "check_masks",
    "coco_dataset",
    "generate_digits_scenes",
    "get_dataset_dicts",
    "get_sem_seg_dicts",
    "image_folder",
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

register_digits_scenes()
register_digits_panoptic()
register_digits()
register_imagenet()
