"""Optimizers. The training tool puts the model into ``params.model``."""

from detectron2.config import LazyCall as L
from torch.optim import AdamW

from piip.optim import layer_decay_groups

# The recipe of the released PIIP detectors; lr_decay_rate=1 switches the layer-wise decay off.
adamw = L(AdamW)(
    params=L(layer_decay_groups)(model=None, base_lr="${..lr}", weight_decay="${..weight_decay}", lr_decay_rate=0.85),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
