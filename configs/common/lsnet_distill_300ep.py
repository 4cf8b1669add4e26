"""The published recipe of LSNet with distillation: that of ``lsnet_300ep.py`` with a teacher."""

from detectron2.config import LazyCall as L

from piip.engine.distillation import Teacher

from .lsnet_300ep import dataloader, lr_multiplier, model, optimizer, train

model.teacher = L(Teacher)(name="regnety_160.deit_in1k")
