"""COCO 2017 with multi-scale training; a leaf config sets the largest crop, and the factor of all sizes."""

from detectron2.config import LazyCall as L
from detectron2.data.transforms import RandomFlip

from piip.data.transforms import multi_scale, multi_scale_test

from .coco import dataloader

dataloader.train.mapper.augmentations = [L(RandomFlip)(), L(multi_scale)(factor=1.0, max_size="???")]
dataloader.test.mapper.augmentations = [L(multi_scale_test)(factor="${dataloader.train.mapper.augmentations.1.factor}")]
