"""PIIP-VT-CS-CB at 1024/672/448: ViT-T (DeiT), ConvNeXt-S and ConvNeXt-B."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_B, CONVNEXT_S, VIT
from ..common.models.branches import convnext_base, convnext_small, deit_tiny

model.backbone.bottom_up.branches = [deit_tiny, convnext_small, convnext_base]
model.backbone.bottom_up.interaction_indexes = [VIT, CONVNEXT_S, CONVNEXT_B]
