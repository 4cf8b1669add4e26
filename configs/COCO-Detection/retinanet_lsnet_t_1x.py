"""RetinaNet on LSNet-T."""

from ..common.models.lsnet import lsnet_t
from ..common.retinanet_lsnet_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = lsnet_t
train.init_checkpoint = "lsnet://lsnet_t.pth"
