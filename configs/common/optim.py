"""Optimizers. The training tool puts the model into ``params.model``."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from torch.optim import AdamW

from piip.optim import layer_decay_groups

# The recipe of the released PIIP detectors; lr_decay_rate=1 switches the layer-wise decay off.
adamw = L(AdamW)(
    params=L(layer_decay_groups)(model=None, base_lr="${..lr}", weight_decay="${..weight_decay}", lr_decay_rate=0.85),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

# The recipe of the released LSNet detectors, which decays norms and biases like weights.
adamw_uniform = L(AdamW)(
    params=L(get_default_optimizer_params)(model=None, overrides={"attention_biases": {"weight_decay": 0.0}}),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
