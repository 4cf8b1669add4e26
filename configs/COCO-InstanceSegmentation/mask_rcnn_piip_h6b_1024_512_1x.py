"""PIIP-H6B at 1024/512: ViT-H (MAE) and InternViT-6B, global attention."""

from ..common.mask_rcnn_piip_6b_1x import dataloader, lr_multiplier, model, optimizer, train
from ..common.models.branches import internvit_6b, mae_huge

model.backbone.bottom_up.branches = [mae_huge, internvit_6b]
model.backbone.bottom_up.resolutions = [1024, 512]
