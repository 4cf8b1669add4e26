"""Mask R-CNN on PIIP; a leaf config names branches and resolutions, highest resolution first."""

from detectron2.config import LazyCall as L

from piip.modeling import PIIP

from .mask_rcnn import model

model.backbone.bottom_up = L(PIIP)(
    branches="???",
    resolutions="???",
    interaction_indexes=12,
    interaction=dict(
        attention="deform",
        num_heads=16,
        num_points=4,
        value_ratio=0.5,
        ffn_ratio=0.25,
        drop_path_rate=0.4,
        with_proj=True,
        with_norm=True,
    ),
    size_divisibility=224,
)
