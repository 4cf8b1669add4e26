"""LSNet-T at 224 pixels, which learns half from RegNetY-16GF."""

from ..common.lsnet_distill_300ep import dataloader, lr_multiplier, model, optimizer, train

model.network.model_name = "lsnet_t_distill"
