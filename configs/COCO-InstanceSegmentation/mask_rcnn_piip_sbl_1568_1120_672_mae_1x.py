"""PIIP-SBL at 1568/1120/672: ViT-S (DeiT III), B and L (MAE), 28 x 28 windows."""

from ..common.mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_small, mae_base, mae_large

model.backbone.bottom_up.branches = [deit3_small, mae_base, mae_large]
model.backbone.bottom_up.resolutions = [1568, 1120, 672]
for branch in model.backbone.bottom_up.branches:
    branch.window_size = 28
