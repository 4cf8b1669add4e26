"""Datasets of pictures with a label for every pixel: registering one's own, loading any by name, plain checks."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image

from ...errors import ConfigError, DataError
from .ade20k import prepare_ade20k
from .coco import get_dataset_dicts
from .coco_checks import quote
from .image_folder import problem_of
from .registry import register

__all__ = ["check_sizes", "get_sem_seg_dicts", "read_labels", "register_sem_seg", "sem_seg_dataset"]

logger = logging.getLogger(__name__)

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_IGNORE_LABEL = 255


def register_sem_seg(
    name: str, image_root: str, label_root: str, classes: Sequence[str], *, check_files: bool = True
) -> None:
    """Enters a folder of pictures and one of label maps into Detectron2's catalogs.

    A label map is a PNG of one channel (grey or with a palette) under the name of its picture. Its values are class
    numbers, or 255 for pixels that do not count. Files are looked for when the dataset is loaded, not here.

    Args:
        name: any that is not taken.
        image_root: folder of the pictures.
        label_root: folder of the label maps.
        classes: names of the classes; class ``i`` is the value ``i`` of a label map.
        check_files: decode every picture and label map when the dataset is loaded, so that broken ones, values that
            are no class and sizes that differ are known before a training.

    Raises:
        ConfigError: for an empty or repeated class, or a name that another dataset has.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"The classes of dataset {name!r} must be a list of different names, not {classes!r}.")
    image_root, label_root = os.fspath(image_root), os.fspath(label_root)
    register(
        name,
        partial(_load, name, image_root, label_root, tuple(classes), check_files),
        stuff_classes=[str(c) for c in classes],
        ignore_label=_IGNORE_LABEL,
        image_root=image_root,
        sem_seg_root=label_root,
        evaluator_type="sem_seg",
    )


def sem_seg_dataset(
    names: str, image_root: str, label_root: str, classes: Sequence[str], check_files: bool = True
) -> list[dict]:
    """Registers a dataset as ``names`` and loads it: what a config for one's own data calls.

    Args:
        names: the one name to register; called as in :func:`get_sem_seg_dicts`, so that configs read alike.
        image_root: see :func:`register_sem_seg`, also for the other arguments.

    Raises:
        ConfigError: see :func:`register_sem_seg`.
        DataError: see :func:`get_sem_seg_dicts`.
    """
    register_sem_seg(names, image_root, label_root, classes, check_files=check_files)
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


def _load(name: str, image_root: str, label_root: str, classes: tuple[str, ...], check_files: bool) -> list[dict]:
    images, labels = _files(name, "images", image_root, _IMAGES), _files(name, "labels", label_root, (".png",))
    _check_pairs(name, "a label map", images.keys() - labels.keys(), label_root)
    _check_pairs(name, "a picture", labels.keys() - images.keys(), image_root)
    dicts = [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in sorted(images)]
    if check_files:
        _check_content(name, dicts, len(classes))
    return dicts


def _check_content(name: str, dicts: Sequence[dict], num_classes: int) -> None:
    logger.info("Looking at %d pictures and their label maps", len(dicts))
    with ThreadPoolExecutor() as threads:  # Pillow decodes without Python's lock
        problems = threads.map(lambda record: _problem(record, num_classes), dicts)
        wrong = {record["file_name"]: problem for record, problem in zip(dicts, problems, strict=True) if problem}
    if wrong:
        first, *others = wrong
        besides = f" The same or another mistake is in {quote(others)}." if others else ""
        raise DataError(
            f"{len(wrong)} of the {len(dicts)} pictures with label maps of dataset {name!r} cannot be used. "
            f"{wrong[first]}{besides}"
        )


def _problem(record: dict, num_classes: int) -> str:
    """What is wrong with a picture and its label map, or an empty string."""
    picture, label_map = record["file_name"], record["sem_seg_file_name"]
    if reason := problem_of(picture):
        return f"The picture {picture!r} cannot be read ({reason}); restore it, or remove it and its label map."
    with Image.open(picture) as image:
        sides = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it lies on its side, and is read upright
            sides = sides[::-1]
    try:
        check_sizes(label_map, read_labels(label_map, num_classes).shape, picture, sides[::-1])
    except DataError as error:
        return str(error)
    return ""


def check_sizes(label_map: str, label_shape: Sequence[int], picture: str, picture_shape: Sequence[int]) -> None:
    """Compares a label map with its picture, both (H, W, ...).

    Raises:
        DataError: if they differ in height or width.
    """
    (label_height, label_width), (height, width) = label_shape[:2], picture_shape[:2]
    if (label_height, label_width) != (height, width):
        raise DataError(
            f"Label map {label_map!r} is {label_width}x{label_height} pixels (width x height), but its image "
            f"{picture!r} is {width}x{height}; correct one of them."
        )


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
