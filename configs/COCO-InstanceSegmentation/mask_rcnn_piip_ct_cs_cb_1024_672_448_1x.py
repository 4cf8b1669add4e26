"""PIIP-CT-CS-CB at 1024/672/448: ConvNeXt-T, ConvNeXt-S and ConvNeXt-B."""

from ..common.mask_rcnn_piip_hybrid_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.block_groups import CONVNEXT_B, CONVNEXT_S, CONVNEXT_T
from ..common.models.branches import convnext_base, convnext_small, convnext_tiny

model.backbone.bottom_up.branches = [convnext_tiny, convnext_small, convnext_base]
model.backbone.bottom_up.interaction_indexes = [CONVNEXT_T, CONVNEXT_S, CONVNEXT_B]

# As released: the detector's usual image size, not 1024 like its siblings.
dataloader.train.mapper.augmentations[0].update(short_edge_length=800, max_size=1333)
