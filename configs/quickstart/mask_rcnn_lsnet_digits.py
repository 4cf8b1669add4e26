"""LSNet-T with Mask R-CNN learns to find and cut out handwritten digits: minutes on two CPU cores, from scratch."""

from ..common.data.digits import dataloader
from ..common.models.lsnet import lsnet_t
from ..common.models.mask_rcnn_lsnet import model
from ..common.models.small_heads import shrink
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

optimizer.lr = 1e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/mask_rcnn_lsnet_digits",
    max_iter=800,
    seed=1,
    eval_period=400,
    clip_grad=dict(enabled=True, max_norm=1.0, norm_type=2.0),
)
train.checkpointer.period = 400

# Without pretraining there are no statistics to keep. The last stage, of stride 64, would see two by two positions.
model.backbone.bottom_up = {**lsnet_t, "batch_norm": "all", "out_features": ["c3", "c4", "c5"]}
model.backbone.in_features = ["c3", "c4", "c5"]
shrink(model, sizes=(16, 32, 56, 80))
