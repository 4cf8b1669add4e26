"""DINO on PIIP learns to find handwritten digits: minutes on two CPU cores.

The pyramid is the one of ``mask_rcnn_piip_digits.py``, the detector everything that the published DINO is, in small.
"""

from detectron2.config import LazyCall as L

from ..common.data.digits import dataloader
from ..common.models.dino import model
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train
from .mask_rcnn_piip_digits import model as mask_rcnn

dataloader.train.mapper.use_instance_mask = False
dataloader.train.total_batch_size = 4
optimizer.lr = 1e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/dino_piip_digits",
    max_iter=1800,
    seed=1,
    eval_period=600,
    clip_grad=dict(enabled=True, max_norm=0.1, norm_type=2.0),
)
train.checkpointer.period = 600
train.report.score_threshold = 0.3  # focal losses leave even sure detections with scores around a half

model.backbone.update(bottom_up=mask_rcnn.backbone.bottom_up, in_features=["c4", "c5"], out_channels=64, num_outputs=3)
bottom_up = model.backbone.bottom_up
bottom_up.out_features = ["c4", "c5"]
for branch, width in zip(bottom_up.branches, (32, 64, 96), strict=True):
    branch.update(embed_dim=width, num_heads=width // 32)
model.transformer.update(num_heads=4, ffn_dim=256, encoder_layers=2, decoder_layers=3, num_queries=50)
model.denoising.num_queries = 20
model.update(num_classes=10, detections_per_image=50)
