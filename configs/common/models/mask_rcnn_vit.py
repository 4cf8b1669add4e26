"""Mask R-CNN on one network without a pyramid; a leaf config names the branch."""

from detectron2.config import LazyCall as L

from piip.modeling import SingleBranch

from .mask_rcnn import model

model.backbone.bottom_up = L(SingleBranch)(branch="???", size_divisibility=64)
