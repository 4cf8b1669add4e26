"""Mask R-CNN on digit scenes with a tiny pyramid of every branch family; an override chooses the family.

model.backbone.bottom_up='${families.beit}'
"""

from detectron2.config import LazyCall as L

from piip.model_zoo import get_config
from piip.modeling import (
    PIIP,
    BEiTBranch,
    ConvNeXtBranch,
    InternViTBranch,
    LSNetBranch,
    SingleBranch,
    TimmBranch,
    UniPerceiverBranch,
    ViTBranch,
)

cfg = get_config("quickstart/mask_rcnn_piip_digits.py")
model, dataloader, optimizer, lr_multiplier, train = (
    cfg[name] for name in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)

fine = L(ViTBranch)(embed_dim=32, depth=4, num_heads=2, pretrain_img_size=64, drop_path_rate=0.1)
size = {"embed_dim": 64, "depth": 4, "num_heads": 4}
convnext = {"depths": (1, 1, 1, 1), "drop_path_rate": 0.1}
stages = [[0, 0], [1, 2], [3, 4], [5, 6]]


def pyramid(coarse, fine=fine, **kwargs):
    """A two-branch PIIP."""
    kwargs = {"interaction_indexes": 2, **kwargs}
    return L(PIIP)(branches=[fine, coarse], resolutions=[128, 96], interaction={"num_heads": 4}, **kwargs)


families = {
    "deit": pyramid(L(ViTBranch)(**size, window_size=4)),
    "internvit": pyramid(L(InternViTBranch)(**size, drop_path_rate=0.2)),
    "internvit_6b": pyramid(
        L(InternViTBranch)(**size, norm="RMS", qk_norm=True, qkv_bias=False, activation="gelu_tanh"),
        interaction_indexes=4,
    ),
    "beit": pyramid(L(BEiTBranch)(**size, window_size=4, drop_path_rate=0.2)),
    "uniperceiver": pyramid(L(UniPerceiverBranch)(**size, window_size=4, drop_path_rate=0.2)),
    "timm": pyramid(L(TimmBranch)(model_name="test_vit", weights=None)),
    "convnext": pyramid(
        L(ConvNeXtBranch)(dims=(32, 64, 96, 128), **convnext),
        L(ConvNeXtBranch)(dims=(16, 32, 64, 96), **convnext),
        interaction_indexes=[stages, stages],
        out_interaction_indexes=[0, 1, 2],
    ),
    "hybrid": pyramid(
        L(ConvNeXtBranch)(dims=(32, 64, 96, 128), **convnext),
        interaction_indexes=[[[k, k] for k in range(4)], stages],
        out_interaction_indexes=[0, 1, 2],
    ),
    "lsnet": pyramid(L(LSNetBranch)(dims=(16, 32, 48, 64), depths=(0, 2, 2, 2), drop_path_rate=0.1)),
    "single": L(SingleBranch)(branch=L(InternViTBranch)(**size)),
}

model.backbone.update(in_features=["c2", "c3", "c4", "c5"], out_channels=16)
levels = ["p2", "p3", "p4", "p5"]
model.proposal_generator.update(in_features=levels, post_nms_topk=[20, 10])
model.proposal_generator.anchor_generator.update(sizes=[[8], [16], [32], [64]], strides=[4, 8, 16, 32])
for kind in ("box", "mask"):
    model.roi_heads[f"{kind}_in_features"] = levels
    model.roi_heads[f"{kind}_pooler"].scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
model.roi_heads.box_head.fc_dims = [32, 32]
model.roi_heads.box_predictor.input_shape.channels = 32
model.roi_heads.mask_head.conv_dims = [8, 8]
dataloader.train.total_batch_size = 2
dataloader.evaluator = None  # nothing is learned in three iterations
optimizer.params.lr_decay_rate = 0.9
train.update(max_iter=3, eval_period=0, log_period=1, device="cpu")
train.checkpointer.period = 2
train.best_checkpointer.enabled = False
train.report.enabled = False
