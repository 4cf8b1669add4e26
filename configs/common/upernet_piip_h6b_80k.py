"""The published 80k recipe of UPerNet on PIIP-H6B; a leaf config names the resolutions, highest first."""

from .models.branches import internvit_6b, mae_huge
from .models.mask_rcnn_piip import model as mask_rcnn
from .models.speedup import speed_up
from .upernet_internvit_6b_80k import dataloader, lr_multiplier, model, optimizer, train

model.backbone = mask_rcnn.backbone.bottom_up
model.backbone.update(branches=[mae_huge, internvit_6b], size_divisibility=32, use_act_checkpoint=True)
speed_up(model.backbone)
# Position embeddings of the released segmentors have the size of the windows.
for k, branch in enumerate(model.backbone.branches):
    branch.pretrain_img_size = f"${{...resolutions.{k}}}"
