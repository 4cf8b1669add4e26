"""UPerNet; a leaf config gives it a backbone with the maps c2 ... c5, all of one width."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from piip.modeling.meta_arch import SemanticSegmentor
from piip.modeling.sem_seg import UPerNetHead

model = L(SemanticSegmentor)(
    backbone="???",
    sem_seg_head=L(UPerNetHead)(
        input_shape={f"c{level}": L(ShapeSpec)(channels="???", stride=2**level) for level in (2, 3, 4, 5)},
        num_classes=150,
        channels=512,
        pool_scales=[1, 2, 3, 6],
        dropout=0.1,
        norm="SyncBN",
        auxiliary_feature="c4",
        auxiliary_channels=256,
        auxiliary_loss_weight=0.4,
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
    train_size=512,
    window_size=512,
    window_stride=341,
    # Test-time augmentation: other sizes, such as [0.5, 1.0, 1.75], and the mirrored image.
    test_scales=[1.0],
    test_flip=False,
)
