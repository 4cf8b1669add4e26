"""The config of the tiny training, in the shape of a leaf config."""

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from torch.optim import AdamW

from piip.data import build_test_loader, build_train_loader
from piip.engine.config import config_root, warmup_fraction
from piip.optim import layer_decay_groups
from tests.engine.tiny import Accuracy, Jitter, TinyNet, tiny_points

model = L(TinyNet)(width=16, noise=0.1, break_at=None, pause=0.0)
dataloader = {
    "train": L(build_train_loader)(
        dataset=L(tiny_points)(count=48),
        mapper=L(Jitter)(amount=0.1),
        total_batch_size=8,
        num_workers=0,
        seed="${train.seed}",
    ),
    "test": L(build_test_loader)(dataset=L(tiny_points)(count=24), mapper=L(Jitter)(amount=0.0), num_workers=0),
    "evaluator": L(Accuracy)(),
}
optimizer = L(AdamW)(
    params=L(layer_decay_groups)(model=None, base_lr="${..lr}", weight_decay="${..weight_decay}"),
    lr=1e-2,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=warmup_fraction(5),
    warmup_factor=0.01,
)
train = LazyConfig.load(str(config_root() / "common/train.py"), "train")
train.update(max_iter=30, seed=3, device="cpu", eval_period=10, log_period=5)
train.checkpointer.update(period=4, max_to_keep=2)
train.best_checkpointer.metric = "points/accuracy"
train.ema.enabled = True
train.ema.decay = 0.9
train.clip_grad.enabled = True
train.report.enabled = False
