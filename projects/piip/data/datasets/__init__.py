"""Datasets by name. Importing this registers the bundled one, as importing Detectron2's data registers COCO."""

from .coco import (
    check_categories,
    check_masks,
    coco_dataset,
    get_dataset_dicts,
    num_classes,
    register_coco,
)
from .digits_scenes import generate_digits_scenes, register_digits_scenes
from .sem_seg import get_sem_seg_dicts, register_sem_seg, sem_seg_dataset

__all__ = [
    "check_categories",
    "check_masks",
    "coco_dataset",
    "generate_digits_scenes",
    "get_dataset_dicts",
    "get_sem_seg_dicts",
    "num_classes",
    "register_coco",
    "register_digits_scenes",
    "register_sem_seg",
    "sem_seg_dataset",
]

register_digits_scenes()
