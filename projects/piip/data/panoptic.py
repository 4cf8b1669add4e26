"""Panoptic maps."""

from __future__ import annotations

import numpy as np
from detectron2.data.detection_utils import read_image

__all__ = ["read_segments"]


def read_segments(path: str) -> np.ndarray:
    """Reads a panoptic map: a picture whose colours are numbers to the base of 256, red first.

    Returns:
        (H, W), int64, the number of every pixel's segment.
    """
    return read_image(path, "RGB").astype(np.int64) @ np.array([1, 256, 256**2])
