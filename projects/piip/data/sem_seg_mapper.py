"""From a dataset dict with a label map to what a segmentation model eats."""

from __future__ import annotations

from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import detection_utils as utils

from ..errors import DataError, UserError
from .datasets.sem_seg import check_sizes, read_labels
from .mapper import DetectionMapper

__all__ = ["SemanticMapper", "original_of"]


class SemanticMapper(DetectionMapper):
    """Adds ``sem_seg``, the label of every pixel, to the sample; checks the labels before they meet a loss.

    In tests the label map is checked, too, but not handed on: evaluators read it themselves. Where the picture is only
    resized, ``original`` is the picture before that, for models that look at it at several scales.

    Args:
        num_classes: classes that a label map may have.
        ignore_label: value of pixels that do not count.
        **kwargs: of :class:`DetectionMapper`.

    Raises:
        DataError: when called, if a picture or label map is missing, unreadable, of another size than it should be, or
            has a label that is no class; in training also if there is no label map.
    """

    def __init__(self, *, num_classes: int, ignore_label: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_label = num_classes, ignore_label

    def __call__(self, dataset_dict: dict) -> dict:
        sample = dict(dataset_dict)
        path = sample.pop("sem_seg_file_name", None)
        try:
            image = utils.read_image(sample["file_name"], format=self.image_format)
            utils.check_image_size(sample, image)
            labels = None if path is None else self._labels(path, image, sample["file_name"])
            inputs = T.AugInput(image, sem_seg=labels)
            transforms = self.augmentations(inputs)
            size = inputs.image.shape[:2]
            sample["image"] = _tensor(inputs.image)
            if not self.is_train:
                sample |= original_of(image, transforms)
                sample.pop("annotations", None)
                return sample
            if labels is None:
                raise DataError(f"Image {sample['file_name']!r} has no label map to learn from; add one or remove it.")
            sample["sem_seg"] = torch.as_tensor(inputs.sem_seg.astype("long"))
            if "annotations" in sample:
                sample["annotations"] = [dict(annotation) for annotation in sample["annotations"]]
                self._transform_annotations(sample, transforms, size)
            return sample
        except UserError:
            raise
        except Exception as error:
            self._explain({key: value for key, value in dataset_dict.items() if key != "sem_seg_file_name"}, error)

    def _labels(self, path: str, image: np.ndarray, name: str) -> np.ndarray:
        labels = read_labels(path, self.num_classes, self.ignore_label)
        check_sizes(path, labels.shape, name, image.shape)
        return labels


def original_of(image: np.ndarray, transforms: T.TransformList) -> dict[str, torch.Tensor]:
    """``{"original": (3, H, W)}`` where a picture (H, W, 3) was resized, and nothing else was done to it."""
    kinds = {type(transform) for transform in transforms.transforms} - {T.NoOpTransform}
    return {"original": _tensor(image)} if kinds == {T.ResizeTransform} else {}


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
