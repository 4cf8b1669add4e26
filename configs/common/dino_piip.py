"""The published recipe of DINO on PIIP: multi-scale training, batches of 32; everything but the branches."""

from .data.coco_multi_scale import dataloader
from .models.dino_piip import model
from .optim import adamw as optimizer
from .train import train

dataloader.train.mapper.augmentations[1].max_size = "${model.backbone.bottom_up.resolutions.0}"
dataloader.train.mapper.use_instance_mask = False
dataloader.train.total_batch_size = 32
model.backbone.bottom_up.size_divisibility = 64
optimizer.lr = 2e-4
train.report.score_threshold = 0.3  # focal losses leave even sure detections with scores around a half
