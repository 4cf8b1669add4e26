"""LSNet-T with Semantic FPN on your own pictures with label maps: see the three fields in the data's config.

It starts from the released ADE20K segmentor; its classifier of pixels is learned anew.
"""

from ..common.data.custom_sem_seg import dataloader, num_classes
from ..common.models.lsnet import lsnet_t
from ..common.semantic_fpn_lsnet_40k import dataloader as published
from ..common.semantic_fpn_lsnet_40k import lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 8
dataloader.test.mapper.augmentations = published.test.mapper.augmentations
optimizer.lr = 1e-4  # the published 2e-4 is for batches of 32
model.backbone.bottom_up = lsnet_t
model.sem_seg_head.num_classes = num_classes
train.update(
    output_dir="./output/quickstart/semantic_fpn_lsnet_custom_sem_seg",
    init_checkpoint="lsnet://lsnet_t_semfpn.pth",
    max_iter=5000,
    eval_period=1000,
)
train.checkpointer.period = 1000
