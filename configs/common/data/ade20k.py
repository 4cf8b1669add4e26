"""ADE20K with 150 classes, as in the published recipes.

Unpack ``ADEChallengeData2016`` into ``$DETECTRON2_DATASETS``; its label maps are renumbered on first use.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from piip.data import SemanticMapper, build_test_loader, build_train_loader, get_sem_seg_dicts
from piip.data.sem_seg_transforms import PhotometricDistortion, RandomRatioResize
from piip.evaluation import build_sem_seg_evaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_sem_seg_dicts)(names="ade20k_sem_seg_train"),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[
            L(RandomRatioResize)(long_edge=2048, short_edge=512, ratio_range=[0.5, 2.0]),
            # No class fills more than three quarters of a crop; smaller images stay smaller, the model pads them.
            L(T.RandomCrop_CategoryAreaConstraint)(
                crop_type="absolute", crop_size=[512, 512], single_category_max_area=0.75, ignored_category=255
            ),
            L(T.RandomFlip)(),
            L(PhotometricDistortion)(),
        ],
        image_format="RGB",
        num_classes=150,
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_sem_seg_dicts)(names="ade20k_sem_seg_val"),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=512, max_size=2048)],
        image_format="${dataloader.train.mapper.image_format}",
        num_classes="${dataloader.train.mapper.num_classes}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(build_sem_seg_evaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
)
