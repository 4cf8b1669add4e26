"""Mask R-CNN on LSNet-B."""

from ..common.mask_rcnn_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.lsnet import lsnet_b

model.backbone.bottom_up = lsnet_b
train.init_checkpoint = "lsnet://lsnet_b.pth"
