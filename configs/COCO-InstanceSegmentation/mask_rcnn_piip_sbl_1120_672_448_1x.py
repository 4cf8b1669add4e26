"""PIIP-SBL at 1120/672/448: ViT-S, B and L (DeiT III), 28 x 28 windows."""

from ..common.mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_base, deit3_large, deit3_small

model.backbone.bottom_up.branches = [deit3_small, deit3_base, deit3_large]
model.backbone.bottom_up.resolutions = [1120, 672, 448]
for branch in model.backbone.bottom_up.branches:
    branch.window_size = 28
