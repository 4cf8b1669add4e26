"""PIIP-SBL at 1568/1120/672: ViT-S, B and L (AugReg), 28 x 28 windows."""

from ..common.mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import augreg_base, augreg_large, augreg_small

model.backbone.bottom_up.branches = [augreg_small, augreg_base, augreg_large]
model.backbone.bottom_up.resolutions = [1568, 1120, 672]
for branch in model.backbone.bottom_up.branches:
    branch.window_size = 28
