"""Semantic FPN on LSNet-B."""

from ..common.models.lsnet import lsnet_b
from ..common.semantic_fpn_lsnet_40k import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = lsnet_b
train.init_checkpoint = "lsnet://lsnet_b.pth"
