"""PIIP-SBL at 320/160/96: ViT-S, -B and -L (AugReg at 224 pixels) with their heads."""

from ..common.models.branches import augreg_base_224, augreg_large_224, augreg_small_224
from ..common.piip_classifier_20ep import dataloader, lr_multiplier, model, optimizer, train

model.network.resolutions = [320, 160, 96]
model.network.branches = [
    {**augreg_small_224, "pretrain_img_size": 320},
    {**augreg_base_224, "pretrain_img_size": 160},
    {**augreg_large_224, "pretrain_img_size": 96},
]
