"""DINO with four scales; a leaf config gives it a bottom-up backbone with the maps c3, c4 and c5."""

from detectron2.config import LazyCall as L

from piip.modeling import ChannelMapper
from piip.modeling.meta_arch import DINO, ContrastiveDenoising, DINOCriterion, DINOTransformer

model = L(DINO)(
    backbone=L(ChannelMapper)(
        bottom_up="???",
        in_features=["c3", "c4", "c5"],
        out_channels=256,
        num_outputs=4,
    ),
    transformer=L(DINOTransformer)(
        num_classes="${..num_classes}",
        dim="${..backbone.out_channels}",
        num_heads=8,
        num_points=4,
        num_levels="${..backbone.num_outputs}",
        ffn_dim=2048,
        encoder_layers=6,
        decoder_layers=6,
        num_queries=900,
    ),
    denoising=L(ContrastiveDenoising)(
        num_classes="${..num_classes}",
        dim="${..backbone.out_channels}",
        num_queries=100,
        label_noise=0.5,
        box_noise=1.0,
    ),
    criterion=L(DINOCriterion)(
        class_weight=1.0,
        box_weight=5.0,
        giou_weight=2.0,
        class_cost=2.0,
        box_cost=5.0,
        giou_cost=2.0,
        alpha=0.25,
        gamma=2.0,
    ),
    num_classes=80,
    pixel_mean=[127.5, 127.5, 127.5],
    pixel_std=[127.5, 127.5, 127.5],
    detections_per_image=300,
    test_score_thresh=0.0,
    input_format="RGB",
)
