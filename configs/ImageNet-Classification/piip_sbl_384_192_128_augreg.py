"""PIIP-SBL at 384/192/128: ViT-S, -B and -L (AugReg at 224 pixels) with their heads."""

from ..common.models.branches import augreg_base_224, augreg_large_224, augreg_small_224
from ..common.piip_classifier_20ep import dataloader, lr_multiplier, model, optimizer, train

model.network.resolutions = [384, 192, 128]
model.network.branches = [
    {**augreg_small_224, "pretrain_img_size": 384},
    {**augreg_base_224, "pretrain_img_size": 192},
    {**augreg_large_224, "pretrain_img_size": 128},
]
