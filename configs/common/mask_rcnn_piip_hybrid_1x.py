"""The published recipe of Mask R-CNN on pyramids with ConvNeXt branches: a map per stage; ImageNet's mean and std."""

from .data.coco import dataloader
from .models.mask_rcnn_piip import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_1x as lr_multiplier
from .train import train

dataloader.train.mapper.augmentations[0].update(short_edge_length=614, max_size=1024)
model.update(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
model.backbone.bottom_up.update(
    resolutions=[1024, 672, 448],
    interaction_indexes="???",  # one list of models/block_groups.py per branch
    out_interaction_indexes=[0, 1, 10],
    size_divisibility=32,
)
optimizer.lr = 2e-4
optimizer.params.lr_decay_rate = 0.8  # of ViT branches; ConvNeXt has none
