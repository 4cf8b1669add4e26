"""The published recipe of LSNet on ImageNet: 300 epochs at batch 2048, repeated augmentation, adaptive clipping.

The released training also averages the weights, but publishes and evaluates the raw ones: the average is off here.
"""

from detectron2.config import LazyCall as L
from timm import create_model

from .data.imagenet import dataloader
from .models.image_classifier import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_lsnet as lr_multiplier
from .train import train

dataloader.train.update(total_batch_size=2048, repeats=3)
model.network = L(create_model)(model_name="???", num_classes="${..num_classes}")
model.erasing = dict(probability=0.25, mode="pixel")
optimizer.update(lr=4e-3, weight_decay=0.025)
optimizer.params.update(lr_decay_rate=1.0, never_decay=["attention_biases"])
train.update(epochs=300, num_images=1281167)
train.clip_grad.update(enabled=True, adaptive=True, max_norm=0.02)
train.best_checkpointer.metric = "classification/top1"
