"""Semantic FPN on LSNet-S."""

from ..common.models.lsnet import lsnet_s
from ..common.semantic_fpn_lsnet_40k import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = lsnet_s
train.init_checkpoint = "lsnet://lsnet_s.pth"
