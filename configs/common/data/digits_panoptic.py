"""The bundled scenes of handwritten digits with panoptic maps: ten classes of things, and the background."""

from detectron2.config import LazyCall as L

from piip.data import SemanticMapper, get_sem_seg_dicts, register_digits_panoptic
from piip.evaluation import PanopticEvaluator

from .digits import dataloader

register_digits_panoptic()

dataloader.train.dataset = L(get_sem_seg_dicts)(names="digits_scenes_panoptic_train")
dataloader.test.dataset = L(get_sem_seg_dicts)(names="digits_scenes_panoptic_val")
dataloader.train.mapper.update(_target_=SemanticMapper, num_classes=2)
dataloader.test.mapper.update(_target_=SemanticMapper, num_classes=2)
# Boxes, masks, and both together with the background.
dataloader.evaluator.dataset_name = "${dataloader.test.dataset.names}"
dataloader.evaluator = [
    dataloader.evaluator,
    L(PanopticEvaluator)(dataset_name="${dataloader.test.dataset.names}"),
]
