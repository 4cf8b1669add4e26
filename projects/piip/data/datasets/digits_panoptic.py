"""``digits_scenes`` for panoptic segmentation: every digit a segment, and the background one.

The maps are made from the masks of the instances on first use. As Panoptic FPN has it, the label maps know "things" (0)
and the classes of stuff after it, here the background.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from .digits_scenes import CLASSES, FOLDER, SCENES, _load_instances, _paths
from .folders import make_folder
from .registry import register

__all__ = ["register_digits_panoptic"]

_BACKGROUND = 1


def register_digits_panoptic(root: str | None = None) -> None:
    """Enters ``digits_scenes_panoptic_{train,val}`` into Detectron2's catalogs; the call can be repeated.

    Besides instances and ``sem_seg_file_name`` their dicts have ``pan_seg_file_name``, a PNG whose red values are the
    numbers of segments, and ``segments_info``.

    Args:
        root: folder of all datasets; by default ``$DETECTRON2_DATASETS`` or ``datasets``, as in Detectron2.
    """
    root = root or os.getenv("DETECTRON2_DATASETS", "datasets")
    for split in SCENES:
        paths = _paths(os.path.join(root, FOLDER), split)
        register(
            f"digits_scenes_panoptic_{split}",
            partial(_load, root, split),
            thing_classes=CLASSES,
            thing_dataset_id_to_contiguous_id={digit + 1: digit for digit in range(10)},
            stuff_classes=["things", "background"],
            ignore_label=255,
            json_file=paths["json"],
            image_root=paths["images"],
            evaluator_type="coco_panoptic_seg",
        )


def _load(root: str, split: str) -> list[dict]:
    dicts = _load_instances(root, split)
    folder = Path(root, f"{FOLDER}_panoptic", split)
    make_folder(folder, partial(_draw, dicts))
    for record in dicts:
        name, things = Path(record["file_name"]).name, record["annotations"]
        record["sem_seg_file_name"] = str(folder / "stuff" / name)
        record["pan_seg_file_name"] = str(folder / "segments" / name)
        record["segments_info"] = [
            *({"id": i, "category_id": thing["category_id"], "isthing": True} for i, thing in enumerate(things, 1)),
            {"id": len(things) + 1, "category_id": _BACKGROUND, "isthing": False},
        ]
    return dicts


def _draw(dicts: list[dict], folder: Path) -> None:
    for kind in ("stuff", "segments"):
        (folder / kind).mkdir()
    for record in dicts:
        name, things = Path(record["file_name"]).name, record["annotations"]
        segments = np.full((record["height"], record["width"]), len(things) + 1, dtype=np.uint8)
        for i, thing in enumerate(things, 1):
            segments[mask_util.decode(thing["segmentation"]).astype(bool)] = i
        stuff = np.where(segments == len(things) + 1, _BACKGROUND, 0).astype(np.uint8)
        Image.fromarray(stuff).save(folder / "stuff" / name)
        zeros = np.zeros_like(segments)
        Image.fromarray(np.stack([segments, zeros, zeros], -1)).save(folder / "segments" / name)
