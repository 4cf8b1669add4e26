"""ADE20K: from the label maps as they are distributed to those that Detectron2's dataset of that name reads."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DataError
from .folders import make_folder

__all__ = ["prepare_ade20k"]

logger = logging.getLogger(__name__)


def prepare_ade20k(folder: str) -> None:
    """Makes a folder of ADE20K's label maps unless it is there.

    As distributed, 0 stands for "no class" and 1 to 150 for the classes. Detectron2 wants the classes from 0 on and 255
    for pixels that do not count.

    Args:
        folder: ``.../annotations_detectron2/<split>``; the distributed maps are in ``.../annotations/<split>``. Where
            these are missing nothing is done.

    Raises:
        DataError: if the folder cannot be written, or a label map cannot be read.
    """
    target = Path(folder)
    source = target.parent.with_name("annotations") / target.name
    if source.is_dir():
        make_folder(target, lambda unfinished: _convert(source, unfinished))


def _convert(source: Path, target: Path) -> None:
    files = sorted(source.glob("*.png"))
    logger.info("Numbering the classes of %d label maps from 0 on: %s, once.", len(files), source)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda file: _convert_file(file, target / file.name), files):
            pass


def _convert_file(source: Path, target: Path) -> None:
    try:
        with Image.open(source) as image:
            labels = np.array(image)
    except Exception as broken:  # Pillow has many words for a broken file
        raise DataError(f"The label map {str(source)!r} cannot be read ({broken}); restore it.") from broken
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise DataError(
            f"The label map {str(source)!r} is no grey picture of 8 bits; take ADEChallengeData2016, not the full "
            "ADE20K."
        )
    Image.fromarray(labels - np.uint8(1)).save(target)  # 0 becomes 255
