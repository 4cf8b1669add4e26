"""The published recipe of Mask R-CNN on PIIP with InternViT-6B: multi-scale training, everything but the branches."""

from .data.coco_multi_scale import dataloader
from .models.mask_rcnn_piip import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_1x as lr_multiplier
from .train import train

dataloader.train.mapper.augmentations[1].max_size = "${model.backbone.bottom_up.resolutions.0}"
model.backbone.bottom_up.update(size_divisibility=64, use_act_checkpoint=True)
