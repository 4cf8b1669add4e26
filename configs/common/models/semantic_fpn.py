"""Semantic FPN; a leaf config gives it a backbone with the maps p3 ... p6, such as an FPN of LSNet."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from piip.modeling.meta_arch import SemanticSegmentor
from piip.modeling.sem_seg import SemanticFPNHead

model = L(SemanticSegmentor)(
    backbone="???",
    sem_seg_head=L(SemanticFPNHead)(
        input_shape={
            f"p{level}": L(ShapeSpec)(channels="${....backbone.out_channels}", stride=2**level)
            for level in (3, 4, 5, 6)
        },
        num_classes=150,
        conv_dims=128,
        common_stride=8,
        dropout=0.1,
        norm="SyncBN",
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
    train_size=512,
    # Test-time augmentation: other sizes, such as [0.5, 1.0, 1.75], and the mirrored image.
    test_scales=[1.0],
    test_flip=False,
)
