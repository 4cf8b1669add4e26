"""PIIP-SBL at 1568/1120/672 with the three box heads of Cascade Mask R-CNN. Ours: nothing is published."""

from ..common.models.cascade_mask_rcnn import make_cascade
from .mask_rcnn_piip_sbl_1568_1120_672_1x import dataloader, lr_multiplier, model, optimizer, train

make_cascade(model)
