"""PIIP learns to label every pixel of scenes of handwritten digits: minutes on two CPU cores.

The pyramid is the one of ``mask_rcnn_piip_digits.py``, below Semantic FPN.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from ..common.data.digits_sem_seg import dataloader
from ..common.models.semantic_fpn import model
from ..common.optim import adamw as optimizer
from ..common.schedules import lr_multiplier_cosine as lr_multiplier
from ..common.train import train
from .mask_rcnn_piip_digits import model as mask_rcnn

optimizer.lr = 1e-3
optimizer.params.lr_decay_rate = 1.0  # nothing is pretrained
train.update(
    output_dir="./output/quickstart/semantic_fpn_piip_digits",
    max_iter=1000,
    seed=1,
    eval_period=500,
    clip_grad=dict(enabled=True, max_norm=1.0, norm_type=2.0),
)
train.checkpointer.period = 500
train.best_checkpointer.metric = "sem_seg/mIoU"

model.backbone = mask_rcnn.backbone
model.sem_seg_head.input_shape = {
    f"p{k}": L(ShapeSpec)(channels="${....backbone.out_channels}", stride=2**k) for k in (2, 3, 4)
}
model.sem_seg_head.update(num_classes=11, common_stride=4, norm="BN", dropout=0.0)  # dropout only slows this down
model.update(pixel_mean=mask_rcnn.pixel_mean, pixel_std=mask_rcnn.pixel_std, train_size=0)
