"""The published 1x recipe of Mask R-CNN on PIIP with DeiT branches: everything but the branches themselves."""

from detectron2.config import LazyCall as L
from detectron2.data.transforms import ResizeShortestEdge

from piip.data.transforms import published_short_edge

from .data.coco import dataloader
from .models.mask_rcnn_piip import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_1x as lr_multiplier
from .train import train

# The long edge of an image becomes what the finest branch is meant for.
dataloader.train.mapper.augmentations[0] = L(ResizeShortestEdge)(
    short_edge_length=L(published_short_edge)(long_edge="${..max_size}"),
    max_size="${model.backbone.bottom_up.resolutions.0}",
)
