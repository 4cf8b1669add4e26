"""COCO 2017, instances. A leaf config sets the resize of training; the test follows it."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.data import DetectionMapper, build_test_loader, build_train_loader, get_dataset_dicts
from piip.evaluation import build_coco_evaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333),
            L(T.RandomFlip)(),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon",
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${dataloader.train.mapper.augmentations.0.short_edge_length}",
                max_size="${dataloader.train.mapper.augmentations.0.max_size}",
            ),
        ],
        image_format="${dataloader.train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(build_coco_evaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
)
