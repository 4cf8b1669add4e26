"""COCO 2017 with large-scale jitter; a leaf config sets the size of the square."""

from detectron2.config import LazyCall as L
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge

from piip.data.transforms import large_scale_jitter

from .coco import dataloader

dataloader.train.mapper.update(
    augmentations=[L(RandomFlip)(), L(large_scale_jitter)(size="???")],
    recompute_boxes=True,  # tight again around what a crop leaves of an object
)
dataloader.test.mapper.augmentations = [
    L(ResizeShortestEdge)(
        short_edge_length="${dataloader.train.mapper.augmentations.1.size}",
        max_size="${dataloader.train.mapper.augmentations.1.size}",
    )
]
