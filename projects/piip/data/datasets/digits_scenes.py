"""The bundled dataset ``digits_scenes``: its files, made on first use, and its names in Detectron2's catalogs.

The digits are the 1797 real handwritten ones inside scikit-learn's wheel, so nothing is downloaded. Training and
validation scenes are drawn from different digits. Pictures are drawn in ``digits_rendering``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets import load_coco_json, load_sem_seg
from iopath.common.file_io import file_lock

from ...errors import DataError, DependencyError
from .digits_rendering import Scene, encode_png, render_scene
from .registry import register

__all__ = ["CLASSES", "generate_digits_scenes", "register_digits_scenes"]

logger = logging.getLogger(__name__)

CLASSES = [f"digit {digit}" for digit in range(10)]
# Another drawing gets another number, so that old files are never taken for new ones.
FOLDER = os.path.join("digits_scenes", "v1")
SCENES = {"train": 2000, "val": 100}
IMAGE_SIZE = 128
SEED = 20240406
HELD_OUT = 5  # every fifth digit of scikit-learn's list belongs to validation


def register_digits_scenes(root: str | None = None) -> None:
    """Enters ``digits_scenes_{train,val}`` and ``digits_scenes_sem_seg_{train,val}`` into Detectron2's catalogs.

    Nothing is written before one of them is loaded. The call can be repeated, also with another root.

    Args:
        root: folder of all datasets; by default ``$DETECTRON2_DATASETS`` or ``datasets``, as in Detectron2.
    """
    root = root or os.getenv("DETECTRON2_DATASETS", "datasets")
    for split in SCENES:
        paths = _paths(os.path.join(root, FOLDER), split)
        common = {"image_root": paths["images"], "sem_seg_root": paths["semantic"]}
        register(
            f"digits_scenes_{split}",
            partial(_load_instances, root, split),
            thing_classes=CLASSES,
            thing_dataset_id_to_contiguous_id={digit + 1: digit for digit in range(10)},
            json_file=paths["json"],
            evaluator_type="coco",
            **common,
        )
        register(
            f"digits_scenes_sem_seg_{split}",
            partial(_load_semantic, root, split),
            stuff_classes=["background", *CLASSES],
            ignore_label=255,
            evaluator_type="sem_seg",
            **common,
        )


def generate_digits_scenes(
    root: str, scenes: dict[str, int] | None = None, image_size: int = IMAGE_SIZE, seed: int = SEED
) -> str:
    """Makes the dataset under ``root`` unless it is there.

    The folder appears whole or not at all: it is written beside its place and renamed. Of several processes one
    writes and the others wait for it.

    Args:
        root: folder of all datasets; created if missing.
        scenes: number of scenes of each split; by default 2000 for ``train`` and 100 for ``val``. Scene ``i`` of a
            split is the same whatever the number.
        image_size: side of the scenes in pixels.
        seed: of all randomness.

    Returns:
        The folder, with ``images/<split>``, ``semantic/<split>`` and ``annotations/instances_<split>.json``.

    Raises:
        DependencyError: without scikit-learn.
        DataError: if the folder cannot be written.
    """
    folder = os.path.join(os.path.abspath(root), FOLDER)
    if os.path.isdir(folder):
        return folder
    try:
        with file_lock(folder):
            if not os.path.isdir(folder):
                _remove_leftovers(folder)
                _generate(folder, scenes or SCENES, image_size, seed)
    except OSError as error:
        raise DataError(
            f"The bundled dataset cannot be written under {root!r} ({error.strerror or error}); "
            "point DETECTRON2_DATASETS at a writable folder with 200 MB of room."
        ) from error
    return folder


def _remove_leftovers(folder: str) -> None:
    """Deletes what killed runs left behind; the lock is held, so nobody is writing."""
    parent, name = os.path.split(folder)
    for entry in os.listdir(parent):
        if entry.startswith(f".{name}."):
            shutil.rmtree(os.path.join(parent, entry))


def _generate(folder: str, scenes: dict[str, int], image_size: int, seed: int) -> None:
    digits, targets = source_digits()
    logger.info("Drawing digits_scenes into %s (%s), once.", folder, ", ".join(f"{n} {k}" for k, n in scenes.items()))
    start = time.perf_counter()
    parent, name = os.path.split(folder)
    unfinished = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
    try:
        os.chmod(unfinished, 0o755)  # mkdtemp's folders are private, datasets are shared
        for split, count in scenes.items():
            chosen = source_indices(split)
            _write_split(_paths(unfinished, split), digits[chosen], targets[chosen], count, image_size, seed, split)
        os.rename(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    logger.info("Drew digits_scenes in %.1f s.", time.perf_counter() - start)


def source_digits() -> tuple[np.ndarray, np.ndarray]:
    """``(1797, 8, 8)`` ink 0-16 and ``(1797,)`` the digit that each shows."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "The bundled dataset is drawn from scikit-learn's digits, which is missing; run 'pip install scikit-learn'."
        ) from error
    data = load_digits()
    return data.images.astype(np.int64), data.target


def source_indices(split: str, count: int = 1797) -> np.ndarray:
    """Which of scikit-learn's digits a split is drawn from; the splits share none."""
    held_out = np.arange(count) % HELD_OUT == HELD_OUT - 1
    return np.flatnonzero(held_out if split == "val" else ~held_out)


def _paths(folder: str, split: str) -> dict[str, str]:
    return {
        "images": os.path.join(folder, "images", split),
        "semantic": os.path.join(folder, "semantic", split),
        "json": os.path.join(folder, "annotations", f"instances_{split}.json"),
    }


def _write_split(
    paths: dict[str, str], digits: np.ndarray, targets: np.ndarray, count: int, image_size: int, seed: int, split: str
) -> None:
    for path in (paths["images"], paths["semantic"], os.path.dirname(paths["json"])):
        os.makedirs(path, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        rng = np.random.Generator(np.random.PCG64([seed, list(SCENES).index(split), index]))
        scene = render_scene(rng, digits, targets, image_size)
        file_name = f"{index:06d}.png"
        for folder, array in ((paths["images"], scene.image), (paths["semantic"], scene.semantic())):
            with open(os.path.join(folder, file_name), "wb") as file:
                file.write(encode_png(array))
        images.append({"id": index + 1, "file_name": file_name, "width": image_size, "height": image_size})
        annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
    categories = [{"id": digit + 1, "name": name, "supercategory": "digit"} for digit, name in enumerate(CLASSES)]
    content = {
        "info": {"description": "Scenes of handwritten digits, drawn from scikit-learn's load_digits"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    with open(paths["json"], "w", encoding="utf-8") as file:
        json.dump(content, file, separators=(",", ":"))


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations: run-length masks of the visible pixels and the boxes that fit them."""
    runs = mask_util.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), dtype=np.uint8))
    areas, boxes = mask_util.area(runs).tolist(), mask_util.toBbox(runs).tolist()
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": boxes[i],
            "area": areas[i],
            "iscrowd": 0,
            "segmentation": {"size": run["size"], "counts": run["counts"].decode("ascii")},
        }
        for i, (label, run) in enumerate(zip(scene.labels, runs, strict=True))
    ]


def _load_instances(root: str, split: str) -> list[dict]:
    generate_digits_scenes(root)
    paths = _paths(os.path.join(root, FOLDER), split)
    return load_coco_json(paths["json"], paths["images"], f"digits_scenes_{split}")


def _load_semantic(root: str, split: str) -> list[dict]:
    generate_digits_scenes(root)
    paths = _paths(os.path.join(root, FOLDER), split)
    return load_sem_seg(paths["semantic"], paths["images"], gt_ext="png", image_ext="png")
