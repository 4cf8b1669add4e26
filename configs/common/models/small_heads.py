"""Mask R-CNN in small, for the ten classes and 128x128 pixels of the bundled scenes."""

from collections.abc import Sequence

from omegaconf import DictConfig


def shrink(model: DictConfig, sizes: Sequence[int] = (16, 32, 56)) -> None:
    """Makes the heads of a Mask R-CNN narrow, on as many levels as there are sides of anchors, from p2 on."""
    strides = [4 * 2**k for k in range(len(sizes))]
    levels, scales = [f"p{k + 2}" for k in range(len(sizes))], [1 / stride for stride in strides]
    model.backbone.out_channels = 64
    model.proposal_generator.update(in_features=levels, batch_size_per_image=64)
    model.proposal_generator.anchor_generator.update(sizes=[[side] for side in sizes], strides=strides)
    model.proposal_generator.update(pre_nms_topk=[500, 200], post_nms_topk=[200, 100])
    model.roi_heads.update(num_classes=10, batch_size_per_image=32)
    for kind in ("box", "mask"):
        model.roi_heads[f"{kind}_in_features"] = levels
        model.roi_heads[f"{kind}_pooler"].scales = scales
    model.roi_heads.box_head.fc_dims = [256, 256]
    model.roi_heads.box_predictor.input_shape.channels = 256
    model.roi_heads.mask_head.conv_dims = [64, 64, 64]
