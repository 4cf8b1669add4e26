"""A training of seconds with everything that classification has: a network of timm, pictures of seven grey levels."""

import numpy as np
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from timm import create_model

from piip.data import register_images
from piip.engine.config import config_root

rng = np.random.default_rng(0)
for split, count in (("train", 48), ("val", 21)):
    labels = np.arange(count) % 7
    images = [(30 * label + rng.integers(0, 30, (12, 12))).astype(np.uint8) for label in labels]
    register_images(f"grey_{split}", images, labels.tolist(), [f"grey {level}" for level in range(7)])

quickstart = LazyConfig.load(str(config_root() / "quickstart/classification_piip_digits.py"))
model, dataloader, optimizer, lr_multiplier, train = (
    quickstart[name] for name in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
model.num_classes = 7
model.network = L(create_model)(model_name="test_resnet", num_classes="${..num_classes}")
dataloader.train.dataset.names, dataloader.test.dataset.names = "grey_train", "grey_val"
dataloader.train.update(total_batch_size=8, repeats=2)
dataloader.train.mapper.transform.update(size=16, auto_augment="rand-m9-mstd0.5-inc1")
train.clip_grad.update(adaptive=True, max_norm=0.02)
train.update(max_iter=4, eval_period=2, log_period=1)
train.checkpointer.period = 1
