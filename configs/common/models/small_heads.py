"""Mask R-CNN in small, for the ten classes and 128x128 pixels of the bundled scenes."""

from omegaconf import DictConfig


def shrink(model: DictConfig) -> None:
    """Makes the heads of a Mask R-CNN narrow, on the levels p2, p3 and p4 alone."""
    levels, scales = ["p2", "p3", "p4"], [1 / 4, 1 / 8, 1 / 16]
    model.backbone.out_channels = 64
    model.proposal_generator.update(in_features=levels, batch_size_per_image=64)
    model.proposal_generator.anchor_generator.update(sizes=[[16], [32], [56]], strides=[4, 8, 16])
    model.proposal_generator.update(pre_nms_topk=[500, 200], post_nms_topk=[200, 100])
    model.roi_heads.update(num_classes=10, batch_size_per_image=32)
    for kind in ("box", "mask"):
        model.roi_heads[f"{kind}_in_features"] = levels
        model.roi_heads[f"{kind}_pooler"].scales = scales
    model.roi_heads.box_head.fc_dims = [256, 256]
    model.roi_heads.box_predictor.input_shape.channels = 256
    model.roi_heads.mask_head.conv_dims = [64, 64, 64]
