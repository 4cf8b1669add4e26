"""A 1x recipe for Mask R-CNN on pyramids whose first branch is an LSNet: a map per stage, from stride 8 to 64."""

from detectron2.config import LazyCall as L

from piip.modeling import LSNetFPN

from .mask_rcnn_piip_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])
model.backbone = L(LSNetFPN)(bottom_up=model.backbone.bottom_up, out_channels=256, finer_level=True)
model.backbone.bottom_up.update(
    interaction_indexes="???",  # one list of models/block_groups.py per branch
    out_interaction_indexes=[0, 1, 5],
    out_features=["c3", "c4", "c5", "c6"],
)
# Not Pillow's resize, as in the published recipes: it is the slowest part of loading an image.
for mapper in (dataloader.train.mapper, dataloader.test.mapper):
    mapper.augmentations[0]._target_ = "piip.data.transforms.FastResizeShortestEdge"
