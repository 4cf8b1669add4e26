"""PIIP-H6B at 1024/512 made faster: bare interactions, the approximate GELU."""

from ..common.models.speedup import speed_up
from .mask_rcnn_piip_h6b_1024_512_1x import dataloader, lr_multiplier, model, optimizer, train

speed_up(model.backbone.bottom_up)
