"""ImageNet-1k and the datasets that its classifiers are tested on: A, R, Sketch and C."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial

from timm.data import ImageNetInfo

from ...errors import DataError, did_you_mean
from .coco_checks import quote
from .image_folder import list_pictures, register_image_folder
from .registry import register

__all__ = ["CORRUPTIONS", "SEVERITIES", "imagenet_synsets", "register_imagenet"]

# The fifteen of the benchmark, in the order of the paper (arXiv:1903.12261); four more are for validation.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)

# Name -> folder below the root of all datasets, and whether it has some of the classes only.
_FOLDERS = {
    "imagenet_train": ("imagenet/train", False),
    "imagenet_val": ("imagenet/val", False),
    "imagenet_a": ("imagenet-a", True),
    "imagenet_r": ("imagenet-r", True),
    "imagenet_sketch": ("imagenet-sketch", False),
}


@cache
def _info() -> ImageNetInfo:
    return ImageNetInfo()


def imagenet_synsets() -> list[str]:
    """The 1000 WordNet synsets (``n01440764``, ...): the names of the class folders, in the order of the labels."""
    return list(_info().label_names())


def _class_names() -> list[str]:
    return [description.partition(",")[0] for description in _info().label_descriptions()]


def register_imagenet(root: str | None = None) -> None:
    """Enters ``imagenet_{train,val,a,r,sketch,c}`` into Detectron2's catalogs; reads nothing from the disk.

    The class folders are named by synsets: ``imagenet/{train,val}/<synset>``, ``imagenet-a``, ``imagenet-r``,
    ``imagenet-sketch``, and ``imagenet-c/<corruption>/<severity>/<synset>``. Files are not decoded when a dataset is
    loaded, which would take long.

    Args:
        root: folder of all datasets; by default ``$DETECTRON2_DATASETS`` or ``datasets``, as in Detectron2.
    """
    root = root or os.getenv("DETECTRON2_DATASETS", "datasets")
    for name, (folder, subset) in _FOLDERS.items():
        register_image_folder(
            name,
            os.path.join(root, folder),
            imagenet_synsets(),
            class_names=_class_names(),
            subset=subset,
            check_files=False,
        )
    register_corruptions("imagenet_c", os.path.join(root, "imagenet-c"), imagenet_synsets(), _class_names())


def register_corruptions(
    name: str, root: str, classes: Sequence[str], class_names: Sequence[str], corruptions: Sequence[str] = CORRUPTIONS
) -> None:
    """Enters ``root/<corruption>/<severity>/<class>/<picture>`` into Detectron2's catalogs.

    Args:
        name: any that is not taken.
        root: holds one folder per corruption, and those one per severity, 1 to 5.
        classes: names of the class folders, in the order of the labels.
        class_names: what the classes are called.
        corruptions: those to be loaded.
    """
    register(
        name,
        partial(_load_corruptions, name, root, tuple(classes), tuple(corruptions)),
        thing_classes=list(class_names),
        class_folders=list(classes),
        image_root=root,
        corruptions=list(corruptions),
        evaluator_type="corruption",
    )


def _load_corruptions(name: str, root: str, classes: tuple[str, ...], corruptions: tuple[str, ...]) -> list[dict]:
    if not os.path.isdir(root):
        raise DataError(
            f"Dataset {name!r} is not there: there is no folder {os.path.abspath(root)!r}; put the data there or "
            "correct the path."
        )
    parts = [(corruption, str(severity)) for corruption in corruptions for severity in SEVERITIES]
    if missing := ["/".join(part) for part in parts if not os.path.isdir(os.path.join(root, *part))]:
        raise DataError(
            f"Dataset {name!r} lacks {len(missing)} of its {len(parts)} folders <corruption>/<severity> in {root!r}: "
            f"{quote(missing)}.{did_you_mean(missing[0].partition('/')[0], os.listdir(root))} Unpack all its archives "
            "there."
        )
    dicts: list[dict] = []
    for corruption, severity in parts:
        dicts += [
            {
                "file_name": path,
                "label": label,
                "image_id": len(dicts) + i,
                "corruption": corruption,
                "severity": int(severity),
            }
            for i, (path, label) in enumerate(list_pictures(name, os.path.join(root, corruption, severity), classes))
        ]
    return dicts
