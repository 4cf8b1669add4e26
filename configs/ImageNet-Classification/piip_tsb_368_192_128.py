"""PIIP-TSB at 368/192/128: DeiT-T, -S and -B with their heads."""

from ..common.models.branches import deit_base, deit_small, deit_tiny
from ..common.piip_classifier_20ep import dataloader, lr_multiplier, model, optimizer, train

model.network.resolutions = [368, 192, 128]
model.network.branches = [
    {**deit_tiny, "pretrain_img_size": 368, "drop_path_rate": 0.05},
    {**deit_small, "pretrain_img_size": 192, "drop_path_rate": 0.05},
    {**deit_base, "pretrain_img_size": 128, "drop_path_rate": 0.2},
]
for branch in model.network.branches:
    branch.update(window_size=0, class_token=True)
