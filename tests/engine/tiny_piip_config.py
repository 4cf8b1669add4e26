"""A training of seconds of a real pyramid: two tiny ViTs with interactions and merging classify grey pictures.

Neither does the model draw random numbers nor matters which images share a batch, so that any division of a batch has
the same gradients.
"""

from detectron2.config import LazyCall as L

from piip.modeling import PIIPClassifier, ViTBranch
from tests.engine import tiny_classifier_config as base

model, dataloader, optimizer = base.model, base.dataloader, base.optimizer
lr_multiplier, train = base.lr_multiplier, base.train

branch = L(ViTBranch)(depth=2, patch_size=4, num_heads=2, pretrain_img_size=16)
model.update(mixup=None, erasing=None)
model.network = L(PIIPClassifier)(
    branches=[{**branch, "embed_dim": 32}, {**branch, "embed_dim": 64, "pretrain_img_size": 8}],
    resolutions=[16, 8],
    num_classes="${..num_classes}",
    head="merged",
    interaction_indexes=2,
    interaction={"num_heads": 4},
)
optimizer.update(lr=2e-3, eps=1e-6)  # where a gradient is nothing but rounding, Adam would make it count
optimizer.params.update(lr_decay_rate=0.8, weight_decay=0.05)
train.clip_grad.update(adaptive=False, max_norm=0.5)
train.ema.update(enabled=True, decay=0.9)
train.update(max_iter=6, eval_period=0, log_period=1, seed=3, device="cpu")
train.checkpointer.update(period=2, max_to_keep=2)
train.report.enabled = False
