"""PIIP-TSB on your own COCO-format data: edit the three fields in ``common/data/custom_coco.py``, or override them.

It starts from the released COCO detector; with an empty ``train.init_checkpoint`` from the branches' ImageNet weights.
"""

from ..common.data.custom_coco import dataloader, num_classes
from ..common.mask_rcnn_piip_1x import dataloader as published
from ..common.mask_rcnn_piip_1x import lr_multiplier, model, optimizer, train
from ..common.models.branches import deit3_base, deit3_small, deit_tiny

dataloader.train.mapper.augmentations = published.train.mapper.augmentations
dataloader.train.total_batch_size = 4
optimizer.lr = 2.5e-5  # the published 1e-4 is for batches of 16
model.backbone.bottom_up.branches = [deit_tiny, deit3_small, deit3_base]
model.backbone.bottom_up.resolutions = [1120, 896, 448]
model.roi_heads.num_classes = num_classes
train.update(
    output_dir="./output/custom",
    init_checkpoint="piip://detection/mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16.pth",
    max_iter=5000,
    eval_period=1000,
)
train.checkpointer.period = 1000
