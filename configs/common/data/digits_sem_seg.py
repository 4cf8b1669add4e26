"""The bundled scenes of handwritten digits with a label for every pixel: background and ten digits."""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.data import (
    SemanticMapper,
    build_test_loader,
    build_train_loader,
    get_sem_seg_dicts,
    register_digits_scenes,
)
from piip.evaluation import build_sem_seg_evaluator

register_digits_scenes()

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_sem_seg_dicts)(names="digits_scenes_sem_seg_train"),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[],  # no flip: a mirrored digit is another one, or none
        image_format="RGB",
        num_classes=11,
    ),
    total_batch_size=8,
    num_workers=0,  # reading a scene takes a millisecond or two
    seed="${train.seed}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_sem_seg_dicts)(names="digits_scenes_sem_seg_val"),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[],
        image_format="${dataloader.train.mapper.image_format}",
        num_classes="${dataloader.train.mapper.num_classes}",
    ),
    num_workers=0,
)

dataloader.evaluator = L(build_sem_seg_evaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
)
