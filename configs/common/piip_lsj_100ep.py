"""A training of PIIP detectors as ViTDet's: large-scale jitter, 100 epochs, batch 64. Ours: nothing is published."""

from .data.coco_lsj import dataloader
from .optim import adamw as optimizer
from .schedules import lr_multiplier_100ep as lr_multiplier
from .train import train

dataloader.train.total_batch_size = 64
dataloader.train.mapper.augmentations[1].size = "${model.backbone.bottom_up.resolutions.0}"
optimizer.weight_decay = 0.1
train.epochs = 100
