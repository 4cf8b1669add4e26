"""PIIP at 1120/896/448: LSNet-T, ViT-S and ViT-B (DeiT III)."""

from ..common.mask_rcnn_piip_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import LSNET_T, VIT
from ..common.models.branches import deit3_base, deit3_small, lsnet_tiny

model.backbone.bottom_up.branches = [lsnet_tiny, deit3_small, deit3_base]
model.backbone.bottom_up.resolutions = [1120, 896, 448]
model.backbone.bottom_up.interaction_indexes = [LSNET_T, VIT, VIT]
