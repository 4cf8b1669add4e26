"""PIIP-TSBL at 1344/896/672/448: ViT-T, S, B and L (DeiT, DeiT III), 28 x 28 windows."""

from ..common.mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_base, deit3_large, deit3_small, deit_tiny

model.backbone.bottom_up.branches = [deit_tiny, deit3_small, deit3_base, deit3_large]
model.backbone.bottom_up.resolutions = [1344, 896, 672, 448]
for branch in model.backbone.bottom_up.branches:
    branch.window_size = 28
