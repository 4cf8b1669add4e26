"""A training of seconds of a real pyramid: two tiny ViTs with interactions and merging classify grey pictures.

Neither does the model draw random numbers nor matters which images share a batch, so that any division of a batch has
the same gradients.
"""

from detectron2.config import LazyCall as L

from piip.modeling import PIIPClassifier, ViTBranch
from tests.engine.tiny_classifier_config import model, optimizer, train

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
optimizer.params.update(lr_decay_rate=0.8, weight_decay=0.05)
train.clip_grad.update(adaptive=False, max_norm=0.5)
train.ema.update(enabled=True, decay=0.9)
train.update(max_iter=8, eval_period=4, log_period=1, seed=3, device="cpu")
train.checkpointer.update(period=3, max_to_keep=2)
train.report.enabled = False
