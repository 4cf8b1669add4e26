"""PIIP-SBL at 1792/1120/672: ViT-S, B and L (DeiT III 384); two 24 x 24 windowed blocks, a global one, and so on."""

from ..common.dino_piip import dataloader, model, optimizer, train
from ..common.models.branches import deit3_base_384, deit3_large_384, deit3_small_384
from ..common.schedules import lr_multiplier_3x as lr_multiplier

model.backbone.bottom_up.branches = [deit3_small_384, deit3_base_384, deit3_large_384]
model.backbone.bottom_up.resolutions = [1792, 1120, 672]
model.backbone.bottom_up.size_divisibility = 224
model.update(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
dataloader.train.mapper.augmentations[1].factor = 1.75
train.epochs = 36
