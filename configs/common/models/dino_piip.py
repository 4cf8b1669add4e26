"""DINO on PIIP; a leaf config names branches and resolutions, highest resolution first."""

from .dino import model
from .mask_rcnn_piip import model as mask_rcnn

# The same pyramid but for the finest map.
model.backbone.bottom_up = mask_rcnn.backbone.bottom_up
model.backbone.bottom_up.out_features = ["c3", "c4", "c5"]
