"""A PIIP learns to classify handwritten digits: minutes on two CPU cores, with the whole recipe of ImageNet in small.

Three resolutions, the largest branch at the lowest one; mixup, cutmix, label smoothing, random erasing, averaged
weights.
"""

from detectron2.config import LazyCall as L

from piip.modeling import PIIPClassifier, ViTBranch

from ..common.data.digits_classification import dataloader
from ..common.models.image_classifier import model
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

optimizer.lr = 2e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/classification_piip_digits",
    epochs=20,
    num_images=1438,
    seed=1,
    eval_period=115,  # five epochs
    clip_grad=dict(enabled=True, max_norm=1.0, norm_type=2.0),
    ema=dict(enabled=True, decay=0.99),
)
train.checkpointer.period = 115
train.best_checkpointer.metric = "classification/top1"

branch = L(ViTBranch)(depth=2, patch_size=4)
model.update(num_classes=10, mixup=dict(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.5), erasing=dict(probability=0.1))
model.network = L(PIIPClassifier)(
    branches=[
        {**branch, "embed_dim": 48, "num_heads": 2, "pretrain_img_size": 32},
        {**branch, "embed_dim": 64, "num_heads": 2, "pretrain_img_size": 24},
        {**branch, "embed_dim": 96, "num_heads": 3, "pretrain_img_size": 16},
    ],
    resolutions=[32, 24, 16],
    num_classes="${..num_classes}",
    head_token="mean",
    interaction_indexes=2,
    interaction=dict(num_heads=4, num_points=4, value_ratio=0.5, ffn_ratio=0.25, drop_path_rate=0.0),
)
