"""PIIP-VT-VS-CB at 1024/672/448: ViT-T (DeiT), ViT-S (DeiT III) and ConvNeXt-B."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_B, VIT
from ..common.models.branches import convnext_base, deit3_small, deit_tiny

model.backbone.bottom_up.branches = [deit_tiny, deit3_small, convnext_base]
model.backbone.bottom_up.interaction_indexes = [VIT, VIT, CONVNEXT_B]
