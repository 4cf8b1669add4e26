"""RetinaNet on LSNet-B."""

from ..common.models.lsnet import lsnet_b
from ..common.retinanet_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = lsnet_b
train.init_checkpoint = "lsnet://lsnet_b.pth"
