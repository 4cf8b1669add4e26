"""PIIP-SBL at 1120/672/448, trained with large-scale jitter for 100 epochs. Ours: nothing is published."""

from ..common.piip_lsj_100ep import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_piip_sbl_1120_672_448_1x import model
