"""The published 80k recipe of UPerNet on InternViT-6B; a leaf config gives the backbone, of width 3200."""

from .data.ade20k import dataloader
from .models.upernet import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_linear as lr_multiplier
from .train_ade20k import train

optimizer.lr = 4e-5
optimizer.params.lr_decay_rate = 0.95
model.sem_seg_head.update(channels=1536, auxiliary_channels=1536)
for shape in model.sem_seg_head.input_shape.values():
    shape.channels = 3200
