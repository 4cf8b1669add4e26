"""LSNet-T at 224 pixels."""

from ..common.lsnet_300ep import dataloader, lr_multiplier, model, optimizer, train

model.network.model_name = "lsnet_t"
