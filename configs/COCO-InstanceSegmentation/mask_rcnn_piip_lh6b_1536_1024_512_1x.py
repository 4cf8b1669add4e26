"""PIIP-LH6B at 1536/1024/512: ViT-L (DeiT III 384), ViT-H (MAE) and InternViT-6B, four fast interactions."""

from ..common.mask_rcnn_piip_6b_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_large_384, internvit_6b, mae_huge
from ..common.models.speedup import speed_up

deit3_large_384.window_size = 0
model.backbone.bottom_up.branches = [deit3_large_384, mae_huge, internvit_6b]
model.backbone.bottom_up.resolutions = [1536, 1024, 512]
model.backbone.bottom_up.interaction_indexes = 4
speed_up(model.backbone.bottom_up)
dataloader.train.mapper.augmentations[1].factor = 1.5
dataloader.train.total_batch_size = 32
optimizer.lr = 2e-4
