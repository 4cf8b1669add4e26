"""Mask R-CNN on LSNet-T."""

from ..common.mask_rcnn_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.lsnet import lsnet_t

model.backbone.bottom_up = lsnet_t
train.init_checkpoint = "lsnet://lsnet_t.pth"
