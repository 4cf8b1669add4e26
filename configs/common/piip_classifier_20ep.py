"""The published recipe of PIIP classifiers on ImageNet: 20 epochs at batch 1024 from pretrained branches with heads.

Interactions learn ten times as fast as the rest, and everything decays. The released training averages the weights
too, but evaluates the raw ones: the average is off here.
"""

from detectron2.config import LazyCall as L

from piip.modeling import PIIPClassifier

from .data.imagenet import dataloader
from .models.image_classifier import model
from .optim import adamw as optimizer
from .schedules import lr_multiplier_piip_classifier as lr_multiplier
from .train import train

# The image is as large as the finest branch is meant for; the test resizes it and cuts nothing but its long side.
dataloader.train.mapper.transform.update(size="${model.network.resolutions.0}", color_jitter=0.3)
dataloader.test.mapper.transform.crop_pct = 1.0
model.network = L(PIIPClassifier)(
    branches="???",
    resolutions="???",
    num_classes="${..num_classes}",
    interaction_indexes=12,
    interaction=dict(
        attention="deform", num_heads=16, num_points=4, value_ratio=0.5, ffn_ratio=0.25, drop_path_rate=0.4
    ),
)
optimizer.update(lr=3e-5, weight_decay=0.1)
optimizer.params.update(lr_decay_rate=1.0, lr_factors={"interactions": 10.0}, decay_vectors=True)
train.update(epochs=20, num_images=1281167)
train.amp.update(enabled=True, dtype="float16")
train.best_checkpointer.metric = "classification/top1"
