"""PIIP-CT-VS-VB at 1024/672/448: ConvNeXt-T, ViT-S (DeiT III) and ViT-B (DeiT III)."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_T, VIT
from ..common.models.branches import convnext_tiny, deit3_base, deit3_small

model.backbone.bottom_up.branches = [convnext_tiny, deit3_small, deit3_base]
model.backbone.bottom_up.interaction_indexes = [CONVNEXT_T, VIT, VIT]
