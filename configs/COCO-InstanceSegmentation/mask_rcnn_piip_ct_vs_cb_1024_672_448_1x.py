"""PIIP-CT-VS-CB at 1024/672/448: ConvNeXt-T, ViT-S (DeiT III) and ConvNeXt-B."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_B, CONVNEXT_T, VIT
from ..common.models.branches import convnext_base, convnext_tiny, deit3_small

model.backbone.bottom_up.branches = [convnext_tiny, deit3_small, convnext_base]
model.backbone.bottom_up.interaction_indexes = [CONVNEXT_T, VIT, CONVNEXT_B]
