"""InternViT-6B at 512, the single-branch baseline: global attention."""

from detectron2.config import LazyCall as L

from piip.modeling import SingleBranch

from ..common.models.branches import internvit_6b
from ..common.upernet_internvit_6b_80k import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(SingleBranch)(branch=internvit_6b)
model.backbone.branch.pretrain_img_size = 512  # of the windows, as position embeddings of the released one have
