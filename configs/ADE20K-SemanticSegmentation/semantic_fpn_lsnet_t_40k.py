"""Semantic FPN on LSNet-T."""

from ..common.models.lsnet import lsnet_t
from ..common.semantic_fpn_lsnet_40k import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = lsnet_t
train.init_checkpoint = "lsnet://lsnet_t.pth"
