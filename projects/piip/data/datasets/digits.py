"""The bundled classification dataset ``digits``: scikit-learn's handwritten digits, in memory."""

from __future__ import annotations

from functools import partial

import numpy as np

from .digits_scenes import source_digits, source_indices
from .registry import register

__all__ = ["register_digits"]


def register_digits() -> None:
    """Enters ``digits_train`` (1438 pictures) and ``digits_val`` (359) into Detectron2's catalogs.

    They are 8x8 pixels; every fifth picture of scikit-learn's list is held out for validation.
    """
    for split in ("train", "val"):
        register(
            f"digits_{split}",
            partial(_load, split),
            thing_classes=[str(digit) for digit in range(10)],
            evaluator_type="classification",
        )


def _load(split: str) -> list[dict]:
    ink, targets = source_digits()
    images = np.round(ink * (255 / 16)).astype(np.uint8)
    return [
        {"image": images[i], "label": int(targets[i]), "image_id": int(i)} for i in source_indices(split, len(images))
    ]
