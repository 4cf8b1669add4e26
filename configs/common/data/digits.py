"""The bundled scenes of handwritten digits, 128x128; made on first use."""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.data import (
    DetectionMapper,
    build_test_loader,
    build_train_loader,
    get_dataset_dicts,
    register_digits_scenes,
)
from piip.evaluation import build_coco_evaluator

register_digits_scenes()

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_dataset_dicts)(names="digits_scenes_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[],  # no flip: a mirrored digit is another one, or none
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    ),
    total_batch_size=8,
    num_workers=0,  # reading a scene takes a millisecond or two
    seed="${train.seed}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_dataset_dicts)(names="digits_scenes_val", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[],
        image_format="${dataloader.train.mapper.image_format}",
    ),
    num_workers=0,
)

dataloader.evaluator = L(build_coco_evaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
)
