"""ConvNeXt-B at 1024, the single-branch baseline, with the maps of its four stages."""

from ..common.mask_rcnn_vit_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import convnext_base

model.backbone.bottom_up.branch = convnext_base
model.update(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
optimizer.params.lr_decay_rate = 1.0
