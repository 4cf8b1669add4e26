"""ImageNet-1k, for networks of 224 pixels; a leaf config sets other sizes in ``dataloader.train.mapper.transform``.

What a model does beside it is tested with another name: ``--eval-only dataloader.test.dataset.names=imagenet_a``, or
``imagenet_r``, ``imagenet_sketch``, and ``imagenet_c`` with ``dataloader.test.mapper.transform.crop_pct=1.0``, whose
images have their size already.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.data import (
    ClassificationMapper,
    build_test_loader,
    build_train_loader,
    get_dataset_dicts,
    image_transform,
    register_imagenet,
)
from piip.evaluation import build_classification_evaluator

register_imagenet()

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_dataset_dicts)(names="imagenet_train"),
    mapper=L(ClassificationMapper)(
        transform=L(image_transform)(
            size=224, is_train=True, interpolation="bicubic", auto_augment="rand-m9-mstd0.5-inc1"
        ),
    ),
    total_batch_size=1024,
    num_workers=8,
    seed="${train.seed}",
    repeats=1,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_dataset_dicts)(names="imagenet_val"),
    mapper=L(ClassificationMapper)(
        transform=L(image_transform)(
            size="${dataloader.train.mapper.transform.size}", is_train=False, interpolation="bicubic", crop_pct=0.875
        ),
    ),
    num_workers=8,
    batch_size=64,
)

dataloader.evaluator = L(build_classification_evaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
)
