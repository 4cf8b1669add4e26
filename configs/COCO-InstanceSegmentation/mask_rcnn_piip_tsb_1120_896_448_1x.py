"""PIIP-TSB at 1120/896/448: ViT-T, S and B (DeiT, DeiT III), 14 x 14 windows."""

from ..common.mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_base, deit3_small, deit_tiny

model.backbone.bottom_up.branches = [deit_tiny, deit3_small, deit3_base]
model.backbone.bottom_up.resolutions = [1120, 896, 448]
