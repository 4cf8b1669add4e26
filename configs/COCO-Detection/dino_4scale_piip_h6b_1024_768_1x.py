"""PIIP-H6B at 1024/768: ViT-H (MAE) and InternViT-6B, global attention."""

from ..common.dino_piip import dataloader, model, optimizer, train
from ..common.models.branches import internvit_6b, mae_huge
from ..common.schedules import lr_multiplier_1x as lr_multiplier

model.backbone.bottom_up.branches = [mae_huge, internvit_6b]
model.backbone.bottom_up.resolutions = [1024, 768]
model.backbone.bottom_up.use_act_checkpoint = True
