"""Datasets in COCO's format: registering one's own, loading any by name, and checks that speak plainly.

Parsing is Detectron2's ``load_coco_json``; what is added here runs before it and after it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from ...errors import ConfigError, DataError, did_you_mean
from .coco_checks import check_content, check_files, quote, read_json
from .registry import register

__all__ = ["check_categories", "check_masks", "coco_dataset", "get_dataset_dicts", "num_classes", "register_coco"]


def register_coco(name: str, json_file: str, image_root: str, classes: Sequence[str]) -> None:
    """Enters a dataset in COCO's instance format into Detectron2's catalogs.

    Files are read and checked when the dataset is loaded, not here. The same name may be registered again with other
    files.

    Args:
        name: any that is not taken.
        json_file: annotations.
        image_root: folder that ``file_name`` of the images is relative to.
        classes: names of the categories in the order of their ids; class ``i`` of a model is ``classes[i]``.

    Raises:
        ConfigError: for an empty or repeated class, or a name that another dataset has.
    """
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"The classes of dataset {name!r} must be a list of different names, not {classes!r}.")
    classes = [str(c) for c in classes]
    register(
        name,
        partial(_load_registered, name, os.fspath(json_file), os.fspath(image_root), tuple(classes)),
        thing_classes=classes,
        json_file=os.fspath(json_file),
        image_root=os.fspath(image_root),
        evaluator_type="coco",
    )


def coco_dataset(
    names: str, json_file: str, image_root: str, classes: Sequence[str], filter_empty: bool = True
) -> list[dict]:
    """Registers a dataset as ``names`` and loads it: what a config for one's own data calls.

    Args:
        names: the one name to register; called as in :func:`get_dataset_dicts`, so that configs read alike.
        json_file: see :func:`register_coco`, also for the next two.
        image_root: see there.
        classes: see there.
        filter_empty: leave out images without usable annotations.

    Raises:
        ConfigError: see :func:`register_coco`.
        DataError: see :func:`get_dataset_dicts`.
    """
    register_coco(names, json_file, image_root, classes)
    return get_dataset_dicts(names, filter_empty=filter_empty)


def num_classes(classes: Sequence[str]) -> int:
    """Their count: lets ``num_classes`` of a config follow its list of classes, also when that is overridden."""
    return len(classes)


def get_dataset_dicts(names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """Detectron2's ``get_detection_dataset_dicts``, with data errors told in words.

    Args:
        names: one registered dataset or several, which are joined.
        filter_empty: leave out images without usable annotations.

    Returns:
        One dict per image, in Detectron2's dataset format.

    Raises:
        DataError: if a name is unknown, a file or folder is missing, the annotations cannot be read, or nothing is
            left to train on.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError("No dataset is named; give at least one, e.g. names=coco_2017_train.")
    for name in names:
        if name not in DatasetCatalog:
            raise DataError(
                f"There is no dataset {name!r}.{did_you_mean(name, DatasetCatalog.list())} Your own data can be "
                "registered with piip.data.register_coco."
            )
        _check_standard_paths(name)
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except FileNotFoundError as error:
        raise DataError(_missing(names, error.filename)) from error
    except json.JSONDecodeError as error:
        raise DataError(f"The annotations of dataset {quote(names)} are not valid JSON ({error}).") from error
    except AssertionError as error:  # Detectron2's way to say that the data are wrong
        raise DataError(f"Dataset {quote(names)} cannot be used: {error}") from error


def _check_standard_paths(name: str) -> None:
    """Missing files of datasets that Detectron2 registered, told before minutes go into parsing.

    Other datasets may make their files when they are loaded.
    """
    if not getattr(DatasetCatalog.data[name], "__module__", "").startswith("detectron2."):
        return
    metadata = MetadataCatalog.get(name)
    for path in (metadata.get("json_file"), metadata.get("image_root")):
        if path and not PathManager.exists(path):
            raise DataError(_missing([name], path))


def _missing(names: Sequence[str], path: str | None) -> str:
    root = os.getenv("DETECTRON2_DATASETS", "datasets")
    return (
        f"Dataset {quote(names)} is not there: {os.path.abspath(path or root)!r} does not exist; put the data there, "
        f"or point the environment variable DETECTRON2_DATASETS (now {root!r}) at the folder that holds them."
    )


def _load_registered(name: str, json_file: str, image_root: str, classes: tuple[str, ...]) -> list[dict]:
    content = read_json(name, json_file)
    check_content(name, json_file, content, classes)
    check_files(name, image_root, [image["file_name"] for image in content["images"]])
    return load_coco_json(json_file, image_root, name)


def check_categories(dataset_name: str | Sequence[str], num_classes: int, kind: str = "thing") -> None:
    """Compares a dataset with the model that shall learn from it or be evaluated on it.

    Args:
        dataset_name: one registered dataset or several; those without object classes are passed over.
        num_classes: that the model predicts.
        kind: ``thing`` for classes of objects, ``stuff`` for classes of pixels.

    Raises:
        DataError: if the counts differ.
    """
    for name in [dataset_name] if isinstance(dataset_name, str) else dataset_name:
        classes = MetadataCatalog.get(name).get(f"{kind}_classes")
        if classes is not None and len(classes) != num_classes:
            raise DataError(
                f"Dataset {name!r} has {len(classes)} categories ({quote(classes)}), but the model predicts "
                f"{num_classes}; set num_classes of the model to {len(classes)}, or choose another dataset."
            )


def check_masks(dicts: Iterable[dict], dataset_name: str | None = None) -> None:
    """Makes sure that a model with a mask head finds masks to learn from.

    Args:
        dicts: images in Detectron2's dataset format.
        dataset_name: to be named in the message.

    Raises:
        DataError: at the first object without a mask.
    """
    where = f" of dataset {dataset_name!r}" if dataset_name else ""
    for image in dicts:
        for annotation in itertools.filterfalse(_has_mask, image.get("annotations", ())):
            raise DataError(
                f"Image {image.get('file_name')!r}{where} has an object without a mask (bbox {annotation.get('bbox')}, "
                "no 'segmentation'), which a mask head needs; add masks to the annotations, or use a model without a "
                "mask head and set dataloader.train.mapper.use_instance_mask=False."
            )


def _has_mask(annotation: dict) -> bool:
    return bool(annotation.get("segmentation")) or annotation.get("iscrowd", 0) == 1
