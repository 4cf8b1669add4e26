"""InternViT-6B at 1024, the single-branch baseline: global attention, multi-scale training."""

from ..common.data.coco_multi_scale import dataloader
from ..common.mask_rcnn_vit_1x import lr_multiplier, model, optimizer, train
from ..common.models.branches import internvit_6b

model.backbone.bottom_up.branch = internvit_6b
dataloader.train.mapper.augmentations[1].max_size = 1024
