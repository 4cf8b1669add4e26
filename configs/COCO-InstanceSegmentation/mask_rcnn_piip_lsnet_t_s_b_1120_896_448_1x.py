"""PIIP at 1120/896/448 of light networks alone, for small devices: LSNet-T, -S and -B."""

from ..common.mask_rcnn_piip_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import LSNET_B, LSNET_S, LSNET_T
from ..common.models.branches import lsnet_base, lsnet_small, lsnet_tiny

model.backbone.bottom_up.branches = [lsnet_tiny, lsnet_small, lsnet_base]
model.backbone.bottom_up.resolutions = [1120, 896, 448]
model.backbone.bottom_up.interaction_indexes = [LSNET_T, LSNET_S, LSNET_B]
