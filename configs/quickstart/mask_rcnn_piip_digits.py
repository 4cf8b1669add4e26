"""PIIP learns to find and cut out handwritten digits: minutes on two CPU cores.

A true PIIP in small: three resolutions, the largest branch at the lowest one, deformable interactions, merging, FPN.
"""

from detectron2.config import LazyCall as L

from piip.modeling import ViTBranch

from ..common.data.digits import dataloader
from ..common.models.mask_rcnn_piip import model
from ..common.models.small_heads import shrink
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

optimizer.lr = 1e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/mask_rcnn_piip_digits",
    max_iter=600,
    seed=1,
    eval_period=300,
    clip_grad=dict(enabled=True, max_norm=1.0, norm_type=2.0),
)
train.checkpointer.period = 300

# Patches of 8 pixels: the pyramid of maps then starts at stride 4 (c3), without the costly stride-2 level.
branch = L(ViTBranch)(depth=2, patch_size=8, pretrain_img_size=128, window_size=0)
model.backbone.bottom_up.update(
    branches=[
        {**branch, "embed_dim": 64, "num_heads": 2},
        {**branch, "embed_dim": 96, "num_heads": 3},
        {**branch, "embed_dim": 128, "num_heads": 4},
    ],
    resolutions=[128, 96, 64],
    interaction_indexes=2,
    out_features=["c3", "c4", "c5"],
    size_divisibility=32,
)
model.backbone.bottom_up.interaction.update(num_heads=4, drop_path_rate=0.0)
model.backbone.update(in_features=["c3", "c4", "c5"], top_block=None)
shrink(model)
