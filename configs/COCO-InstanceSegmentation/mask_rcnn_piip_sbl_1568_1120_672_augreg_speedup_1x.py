"""PIIP-SBL (AugReg) at 1568/1120/672 made faster: bare interactions, the approximate GELU."""

from ..common.models.speedup import speed_up
from .mask_rcnn_piip_sbl_1568_1120_672_augreg_1x import dataloader, lr_multiplier, model, optimizer, train

speed_up(model.backbone.bottom_up)
