"""From a picture with a label to what a classifier eats."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor

from ..errors import ConfigError, DataError

__all__ = ["ClassificationMapper", "image_transform"]


def image_transform(size: int, is_train: bool, **settings: Any) -> Callable[[Image.Image], Tensor]:
    """timm's transform of training or test, which leaves normalising and erasing to the model.

    Args:
        size: pixels per side of the result.
        is_train: random crops, flips and whatever else the settings ask for; otherwise a resize and a centre crop.
        **settings: of ``timm.data.create_transform``: ``auto_augment``, ``color_jitter``, ``scale``, ``hflip``,
            ``interpolation``, ``crop_pct``, ``no_aug`` and so on.

    Returns:
        RGB picture -> uint8 (3, size, size).

    Raises:
        ConfigError: for settings that timm does not know, or that belong to the model.
    """
    for name, place in (("re_prob", "model.erasing"), ("mean", "model.pixel_mean"), ("std", "model.pixel_std")):
        if name in settings:
            raise ConfigError(f"The transform got {name}={settings[name]}, which the model does; set {place} instead.")
    try:
        transform = create_transform(size, is_training=is_train, normalize=False, **settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"timm makes no transform of {settings}: {error}.") from error
    for step in transform.transforms:
        for op in getattr(step, "ops", ()) or chain.from_iterable(getattr(step, "policy", ())):
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """timm's operation, which at the highest level asks for no bit at all; Pillow 13 refuses that."""
    return auto_augment.posterize(image, max(bits, 1), **settings)


class ClassificationMapper:
    """Makes a sample of a dataset dict with ``file_name`` or, for pictures in memory, ``image`` (H, W[, 3]).

    Args:
        transform: RGB picture -> tensor (3, H, W); see :func:`image_transform`.

    Returns:
        when called, the dict with ``image`` as the transform gives it.

    Raises:
        DataError: when called, if a picture is missing or cannot be read.
    """

    image_format = "RGB"

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, dataset_dict: dict) -> dict:
        picture = (
            Image.fromarray(dataset_dict["image"]) if "image" in dataset_dict else _read(dataset_dict["file_name"])
        )
        return {**dataset_dict, "image": torch.as_tensor(self.transform(picture.convert("RGB")))}


def _read(name: str) -> Image.Image:
    try:
        with Image.open(name) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"The picture {name!r} does not exist; restore it or remove it from the dataset.") from error
    except Exception as error:  # Pillow has many words for a broken file
        raise DataError(
            f"The picture {name!r} cannot be read ({type(error).__name__}: {error}); restore or remove it. "
            "check_files=True of its dataset finds all such pictures, skip_unreadable=True leaves them out."
        ) from error
