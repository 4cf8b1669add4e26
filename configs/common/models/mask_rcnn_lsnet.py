"""Mask R-CNN on LSNet; a leaf config names the size. Only the proposals see the level of stride 64."""

from detectron2.config import LazyCall as L

from piip.modeling import LSNetFPN

from .mask_rcnn import model

model.backbone = L(LSNetFPN)(bottom_up="???", out_channels=256, finer_level=True)
model.update(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
