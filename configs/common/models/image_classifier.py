"""An image classifier as it is trained on ImageNet; a leaf config names the network."""

from detectron2.config import LazyCall as L

from piip.modeling.meta_arch import ImageClassifier

model = L(ImageClassifier)(
    network="???",
    num_classes=1000,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    label_smoothing=0.1,
    # Arguments of timm's Mixup and RandomErasing; null switches them off.
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
    erasing=None,
    teacher=None,
)
