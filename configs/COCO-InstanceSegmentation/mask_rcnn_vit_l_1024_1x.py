"""ViT-L (DeiT III) at 1024, the single-branch baseline: two windowed blocks, then a global one, and so on."""

from ..common.mask_rcnn_vit_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_large

model.backbone.bottom_up.branch = deit3_large
model.backbone.bottom_up.branch.window_size = [14, 14, 0] * 8
