"""Mask R-CNN on LSNet-S."""

from ..common.mask_rcnn_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.lsnet import lsnet_s

model.backbone.bottom_up = lsnet_s
train.init_checkpoint = "lsnet://lsnet_s.pth"
