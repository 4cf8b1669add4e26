"""The published 40k recipe of Semantic FPN on LSNet; a leaf config names the size and its pretrained weights.

Images are tested whole, and resized, not padded, to multiples of 32.
"""

from detectron2.config import LazyCall as L

from piip.data.sem_seg_transforms import ResizeToMultiple
from piip.modeling import LSNetFPN

from .data.ade20k import dataloader
from .models.semantic_fpn import model
from .optim import adamw_uniform as optimizer
from .schedules import lr_multiplier_poly as lr_multiplier
from .train_ade20k import train

dataloader.train.total_batch_size = 32
dataloader.test.mapper.augmentations.append(L(ResizeToMultiple)(divisor=32))
optimizer.update(lr=2e-4, weight_decay=1e-4)
optimizer.params.overrides = {}  # attention biases decay, too
model.backbone = L(LSNetFPN)(bottom_up="???", out_channels=256)
train.update(max_iter=40000, eval_period=4000)
train.checkpointer.period = 4000
