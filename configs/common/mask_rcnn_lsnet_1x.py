"""The published 1x recipe of Mask R-CNN on LSNet; a leaf config names the size and its pretrained weights."""

from .data.coco import dataloader
from .models.mask_rcnn_lsnet import model
from .optim import adamw_uniform as optimizer
from .schedules import lr_multiplier_1x as lr_multiplier
from .train import train
