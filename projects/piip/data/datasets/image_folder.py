"""Classification datasets: a folder of pictures per class, or pictures in memory."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ...errors import ConfigError, DataError
from .coco_checks import quote
from .registry import register

__all__ = [
    "class_folders",
    "image_folder",
    "list_pictures",
    "num_folders",
    "problem_of",
    "register_image_folder",
    "register_images",
]

logger = logging.getLogger(__name__)

Classes = Sequence[str] | str | os.PathLike


def register_image_folder(
    name: str,
    root: str,
    classes: Classes,
    *,
    class_names: Sequence[str] | None = None,
    subset: bool = False,
    check_files: bool = True,
    skip_unreadable: bool = False,
) -> None:
    """Enters a folder of pictures, ``root/<class>/.../<picture>``, into Detectron2's catalogs.

    Nothing is read before the dataset is loaded, but the names of the classes where they are those of folders.

    Args:
        name: any that is not taken.
        root: holds one folder per class.
        classes: names of the class folders, in the order of the labels; or a folder whose sub-folders they are, sorted,
            usually the one of the training set.
        class_names: what the classes are called in reports; by default as their folders.
        subset: take what classes there are, instead of asking for the folders of all.
        check_files: decode every picture when the dataset is loaded, so that broken ones are known before a training.
        skip_unreadable: leave out broken pictures, with a warning, instead of refusing the dataset.

    Raises:
        ConfigError: for an empty or repeated class, or a name that another dataset has.
        DataError: when ``classes`` is a folder that has no sub-folders.
    """
    folders = class_folders(classes)
    names = folders if class_names is None else [str(c) for c in class_names]
    if len(names) != len(folders):
        raise ConfigError(f"Dataset {name!r} has {len(folders)} classes, but {len(names)} class_names.")
    root = os.fspath(root)
    register(
        name,
        partial(_load, name, root, tuple(folders), subset, check_files, skip_unreadable),
        thing_classes=names,
        class_folders=folders,
        image_root=root,
        evaluator_type="classification",
    )


def image_folder(
    names: str,
    root: str,
    classes: Classes,
    subset: bool = False,
    check_files: bool = True,
    skip_unreadable: bool = False,
) -> list[dict]:
    """Registers a folder of pictures as ``names`` and loads it: what a config for one's own data calls.

    Args:
        names: the one name to register.
        root: see :func:`register_image_folder`, also for the other arguments.

    Returns:
        a dict per picture: ``file_name``, ``label`` and ``image_id``.

    Raises:
        ConfigError: see :func:`register_image_folder`.
        DataError: when the folder or those of classes are missing, empty or unknown, or pictures cannot be read.
    """
    register_image_folder(names, root, classes, subset=subset, check_files=check_files, skip_unreadable=skip_unreadable)
    return DatasetCatalog.get(names)


def class_folders(classes: Classes) -> list[str]:
    """The names of class folders, given as they are or as the folder that holds them.

    Raises:
        ConfigError: for an empty or repeated class.
        DataError: when there is no such folder, or nothing in it.
    """
    if isinstance(classes, str | os.PathLike):
        if not os.path.isdir(classes):
            raise DataError(f"There is no folder {os.path.abspath(classes)!r} to take the classes from; correct it.")
        found = sorted(_folders_in(classes))
        if not found:
            raise DataError(
                f"The folder {os.path.abspath(classes)!r} has no folders, which the classes are taken from."
            )
        return found
    names = [str(c) for c in classes]
    if not names:
        raise ConfigError("There are no classes; list the names of their folders.")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"The classes must differ, but some are listed more than once: {quote(repeated)}.")
    return names


def _folders_in(folder: str | os.PathLike) -> set[str]:
    """Names of the folders directly inside, without hidden ones, which programs leave behind."""
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def num_folders(classes: Classes) -> int:
    """How many classes there are: lets ``num_classes`` of a config follow its folders."""
    return len(class_folders(classes))


def register_images(name: str, images: Sequence[np.ndarray], labels: Sequence[int], classes: Sequence[str]) -> None:
    """Enters pictures in memory into Detectron2's catalogs.

    Args:
        name: any that is not taken.
        images: (H, W) or (H, W, 3), RGB, uint8; sizes may differ.
        labels: number of the class of each.
        classes: what the classes are called.

    Raises:
        ConfigError: for a name that another dataset has.
        DataError: for pictures of another kind, or labels that are missing or no class.
    """
    if len(images) != len(labels):
        raise DataError(
            f"Dataset {name!r} has {len(images)} images and {len(labels)} labels; give one label per image."
        )
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise DataError(
                f"Image {number} of dataset {name!r} has shape {image.shape} and type {image.dtype}; it must be "
                "uint8 of shape (H, W) or (H, W, 3)."
            )
    if wrong := sorted({int(label) for label in labels if not 0 <= label < len(classes)}):
        raise DataError(f"Dataset {name!r} has labels {wrong}, but the classes are 0 to {len(classes) - 1}.")
    dicts = [
        {"image": image, "label": int(label), "image_id": number}
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    held = partial(_Held.dicts, _Held(dicts))
    register(name, held, thing_classes=[str(c) for c in classes], evaluator_type="classification")


class _Held:
    """Dicts that are equal to themselves only, since arrays have no one answer to that question."""

    def __init__(self, dicts: list[dict]) -> None:
        self._dicts = dicts

    def dicts(self) -> list[dict]:
        return self._dicts


def list_pictures(name: str, root: str, folders: Sequence[str], subset: bool = False) -> list[tuple[str, int]]:
    """Files and labels of the pictures below the class folders in ``root``.

    Args:
        name: of the dataset, for messages.
        root: holds one folder per class.
        folders: names of all classes, in the order of the labels.
        subset: take what classes there are.

    Raises:
        DataError: when folders are missing, unknown or empty.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"Dataset {name!r} is not there: there is no folder {os.path.abspath(root)!r}; put the data there or "
            "correct the path."
        )
    there = _folders_in(root)
    if unknown := sorted(there - set(folders)):
        raise DataError(
            f"The folder {root!r} of dataset {name!r} has {len(unknown)} folders that are no class: {quote(unknown)}; "
            f"the {len(folders)} classes are {quote(folders)}."
        )
    if (missing := [folder for folder in folders if folder not in there]) and not (subset and there):
        raise DataError(
            f"Dataset {name!r} lacks the folders of {len(missing)} of its {len(folders)} classes in {root!r}: "
            f"{quote(missing)}; restore them, or set subset=True if only some classes are wanted."
        )
    found = make_dataset(root, {f: i for i, f in enumerate(folders)}, IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in found}
    if empty := [folder for label, folder in enumerate(folders) if folder in there and label not in filled]:
        raise DataError(
            f"Dataset {name!r} has no pictures in the folders of {len(empty)} classes in {root!r}: {quote(empty)}; "
            f"fill them, or remove them and these classes. Pictures end in {', '.join(IMG_EXTENSIONS)}."
        )
    return found


def _load(
    name: str, root: str, folders: tuple[str, ...], subset: bool, check_files: bool, skip_unreadable: bool
) -> list[dict]:
    found = list_pictures(name, root, folders, subset)
    broken = _unreadable([path for path, _ in found]) if check_files or skip_unreadable else {}
    if broken:
        reasons = "; ".join(f"{path!r} ({reason})" for path, reason in list(broken.items())[:5])
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        problem = f"{len(broken)} of the {len(found)} pictures of dataset {name!r} cannot be read: {reasons}{more}"
        if not skip_unreadable or len(broken) == len(found):
            raise DataError(f"{problem}. Restore or remove them, or leave them out with skip_unreadable=True.")
        logger.warning("%s. They are left out.", problem)
    kept = [(path, label) for path, label in found if path not in broken]
    return [{"file_name": path, "label": label, "image_id": i} for i, (path, label) in enumerate(kept)]


def _unreadable(paths: Sequence[str]) -> dict[str, str]:
    """The pictures that cannot be decoded, with the reasons."""
    logger.info("Looking at %d pictures", len(paths))
    with ThreadPoolExecutor() as threads:  # Pillow decodes without Python's lock
        return {path: reason for path, reason in zip(paths, threads.map(problem_of, paths), strict=True) if reason}


def problem_of(path: str) -> str:
    """Why a picture cannot be decoded, or an empty string."""
    try:
        with Image.open(path) as image:
            image.draft(None, (64, 64))  # a JPEG is decoded at an eighth of its size, but to its end
            image.load()
    except Exception as error:  # Pillow has many words for a broken file
        return "it is no picture" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
    return ""
