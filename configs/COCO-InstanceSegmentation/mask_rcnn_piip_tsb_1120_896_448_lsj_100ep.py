"""PIIP-TSB at 1120/896/448, trained with large-scale jitter for 100 epochs. Ours: nothing is published."""

from ..common.piip_lsj_100ep import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_piip_tsb_1120_896_448_1x import model
