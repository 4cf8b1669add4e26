"""LSNet-T with RetinaNet learns to find handwritten digits: minutes on two CPU cores, from scratch."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data.digits import dataloader
from ..common.models.lsnet import lsnet_t
from ..common.models.retinanet_lsnet import model
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

# The finest map has stride 8: twice the pixels make the digits large enough for it.
for loader in (dataloader.train, dataloader.test):
    loader.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=256, max_size=256)]
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 1e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/retinanet_lsnet_digits",
    max_iter=1000,
    seed=1,
    eval_period=500,
    clip_grad=dict(enabled=True, max_norm=1.0, norm_type=2.0),
)
train.checkpointer.period = 500

# Without pretraining there are no statistics to keep. The last stage, of stride 64, has nothing to add.
model.backbone.bottom_up = {**lsnet_t, "batch_norm": "all", "out_features": ["c3", "c4", "c5"]}
model.backbone.update(in_features=["c3", "c4", "c5"], out_channels=64, coarser_level=False)
model.update(num_classes=10, head_in_features=["p3", "p4", "p5"])
model.head.update(conv_dims=[64, 64], input_shape=model.head.input_shape[:3])
model.anchor_generator.update(
    sizes=[[side * 2 ** (octave / 3) for octave in range(3)] for side in (32, 64, 112)], strides=[8, 16, 32]
)
