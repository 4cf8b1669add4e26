"""Datasets of pictures with a label for every pixel: registering one's own, loading any by name, plain checks."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from ...errors import ConfigError, DataError
from .ade20k import prepare_ade20k
from .coco import get_dataset_dicts
from .coco_checks import quote
from .registry import register

__all__ = ["get_sem_seg_dicts", "read_labels", "register_sem_seg", "sem_seg_dataset"]

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_IGNORE_LABEL = 255


def register_sem_seg(name: str, image_root: str, label_root: str, classes: Sequence[str]) -> None:
    """Enters a folder of pictures and one of label maps into Detectron2's catalogs.

    A label map is a PNG of one channel (grey or with a palette) under the name of its picture. Its values are class
    numbers, or 255 for pixels that do not count. Files are looked for when the dataset is loaded, not here.

    Args:
        name: any that is not taken.
        image_root: folder of the pictures.
        label_root: folder of the label maps.
        classes: names of the classes; class ``i`` is the value ``i`` of a label map.

    Raises:
        ConfigError: for an empty or repeated class, or a name that another dataset has.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"The classes of dataset {name!r} must be a list of different names, not {classes!r}.")
    image_root, label_root = os.fspath(image_root), os.fspath(label_root)
    register(
        name,
        partial(_load, name, image_root, label_root),
        stuff_classes=[str(c) for c in classes],
        ignore_label=_IGNORE_LABEL,
        image_root=image_root,
        sem_seg_root=label_root,
        evaluator_type="sem_seg",
    )


def sem_seg_dataset(names: str, image_root: str, label_root: str, classes: Sequence[str]) -> list[dict]:
    """Registers a dataset as ``names`` and loads it: what a config for one's own data calls.

    Args:
        names: the one name to register; called as in :func:`get_sem_seg_dicts`, so that configs read alike.
        image_root: see :func:`register_sem_seg`, also for the next two.
        label_root: see there.
        classes: see there.

    Raises:
        ConfigError: see :func:`register_sem_seg`.
        DataError: see :func:`get_sem_seg_dicts`.
    """
    register_sem_seg(names, image_root, label_root, classes)
    return get_sem_seg_dicts(names)


def get_sem_seg_dicts(names: str | Sequence[str]) -> list[dict]:
    """Loads datasets by name; the label maps of ADE20K are brought into Detectron2's form on first use.

    Args:
        names: one registered dataset or several, which are joined.

    Returns:
        One dict per image with ``file_name`` and ``sem_seg_file_name``.

    Raises:
        DataError: if a name is unknown, a folder is missing or empty, or a dataset has no label maps.
    """
    for name in [names] if isinstance(names, str) else names:
        if name.startswith("ade20k_sem_seg"):
            prepare_ade20k(MetadataCatalog.get(name).get("sem_seg_root"))
    dicts = get_dataset_dicts(names, filter_empty=False)
    if "sem_seg_file_name" not in dicts[0]:
        raise DataError(f"Dataset {names!r} has no label maps to segment by; choose another one.")
    return dicts


def _load(name: str, image_root: str, label_root: str) -> list[dict]:
    images, labels = _files(name, "images", image_root, _IMAGES), _files(name, "labels", label_root, (".png",))
    _check_pairs(name, "a label map", images.keys() - labels.keys(), label_root)
    _check_pairs(name, "a picture", labels.keys() - images.keys(), image_root)
    return [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in sorted(images)]


def _check_pairs(name: str, kind: str, lacking: Collection[str], root: str) -> None:
    if lacking:
        raise DataError(
            f"Dataset {name!r} lacks {kind} in {root!r} for {len(lacking)} names: {quote(sorted(lacking), limit=3)}; "
            "pictures and label maps must go together by name."
        )


def _files(name: str, field: str, root: str, suffixes: Sequence[str]) -> dict[str, str]:
    """Paths of the files in a folder by their names without suffix."""
    if not PathManager.isdir(root):
        raise DataError(
            f"The {field} of dataset {name!r} are missing: there is no folder {os.path.abspath(root)!r}; correct the "
            f"path {field!r}."
        )
    found: dict[str, str] = {}
    for file_name in sorted(PathManager.ls(root)):
        stem, suffix = os.path.splitext(file_name)
        if suffix.lower() not in suffixes:
            continue
        if stem in found:
            raise DataError(f"Dataset {name!r} has two files of the name {stem!r} in {root!r}; remove or rename one.")
        found[stem] = os.path.join(root, file_name)
    if not found:
        raise DataError(f"The folder {root!r} of dataset {name!r} holds no {' or '.join(suffixes)} files.")
    return found


def read_labels(path: str, num_classes: int, ignore_label: int = _IGNORE_LABEL) -> np.ndarray:
    """Reads a label map and checks its values.

    Args:
        path: of an image of one channel. (Detectron2 would take the colours of a palette for labels.)
        num_classes: classes that there are.
        ignore_label: the one other value that may occur.

    Returns:
        (H, W), uint8, or int32 where the file has more than 8 bits.

    Raises:
        DataError: for a file that is missing, broken, in colours, or has other values.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            labels = np.asarray(image)
    except FileNotFoundError as missing:
        raise DataError(f"The label map {path!r} does not exist; restore it or remove its picture.") from missing
    except Exception as broken:  # Pillow has many words for a broken file
        raise DataError(
            f"The label map {path!r} cannot be read ({type(broken).__name__}: {broken}); restore it or remove it."
        ) from broken
    if labels.ndim != 2:
        raise DataError(
            f"The label map {path!r} has {labels.shape[-1]} channels; it must have one, whose values are class numbers."
        )
    labels = labels.astype(np.uint8 if labels.dtype.itemsize == 1 else np.int32)
    values = np.flatnonzero(np.bincount(labels.ravel())) if labels.size and labels.min() >= 0 else np.unique(labels)
    wrong = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if len(wrong):
        raise DataError(
            f"The label map {path!r} has the values {quote(wrong.tolist())}, but there are {num_classes} classes, 0 to "
            f"{num_classes - 1}, and {ignore_label} for pixels that do not count; correct the labels or the classes."
        )
    return labels
