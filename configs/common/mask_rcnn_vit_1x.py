"""The published 1x recipe of the single-branch baselines at 1024 pixels."""

from .data.coco import dataloader
from .models.mask_rcnn_vit import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_1x as lr_multiplier
from .train import train

optimizer.params.lr_decay_rate = 0.95
dataloader.train.mapper.augmentations[0].update(short_edge_length=614, max_size=1024)
