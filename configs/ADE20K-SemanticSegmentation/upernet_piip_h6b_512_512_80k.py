"""PIIP-H6B at 512/512: ViT-H (MAE) and InternViT-6B, global attention, bare interactions."""

from ..common.upernet_piip_h6b_80k import dataloader, lr_multiplier, model, optimizer, train

model.backbone.resolutions = [512, 512]
