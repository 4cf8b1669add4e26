"""PIIP-CT-CS-VB at 1024/672/448: ConvNeXt-T, ConvNeXt-S and ViT-B (DeiT III)."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_S, CONVNEXT_T, VIT
from ..common.models.branches import convnext_small, convnext_tiny, deit3_base

model.backbone.bottom_up.branches = [convnext_tiny, convnext_small, deit3_base]
model.backbone.bottom_up.interaction_indexes = [CONVNEXT_T, CONVNEXT_S, VIT]
