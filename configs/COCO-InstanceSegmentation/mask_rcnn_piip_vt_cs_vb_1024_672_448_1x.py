"""PIIP-VT-CS-VB at 1024/672/448: ViT-T (DeiT), ConvNeXt-S and ViT-B (DeiT III)."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_S, VIT
from ..common.models.branches import convnext_small, deit3_base, deit_tiny

model.backbone.bottom_up.branches = [deit_tiny, convnext_small, deit3_base]
model.backbone.bottom_up.interaction_indexes = [VIT, CONVNEXT_S, VIT]
