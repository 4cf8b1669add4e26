"""ADE20K: from the label maps as they are distributed to those that Detectron2's dataset of that name reads."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image

from ...errors import DataError

__all__ = ["prepare_ade20k"]

logger = logging.getLogger(__name__)


def prepare_ade20k(folder: str) -> None:
    """Makes a folder of ADE20K's label maps unless it is there.

    As distributed, 0 stands for "no class" and 1 to 150 for the classes. Detectron2 wants the classes from 0 on and 255
    for pixels that do not count. The folder appears whole or not at all; of several processes one makes it.

    Args:
        folder: ``.../annotations_detectron2/<split>``; the distributed maps are in ``.../annotations/<split>``. Where
            these are missing nothing is done.

    Raises:
        DataError: if the folder cannot be written, or a label map cannot be read.
    """
    target = Path(folder)
    source = target.parent.with_name("annotations") / target.name
    if target.is_dir() or not source.is_dir():
        return
    try:
        target.parent.mkdir(exist_ok=True)
        with file_lock(str(target)):
            if not target.is_dir():
                _convert(source, target)
    except OSError as error:
        raise DataError(
            f"ADE20K's label maps cannot be written to {folder!r} ({error.strerror or error}); make the folder "
            "writable, or run the training once where it is."
        ) from error


def _convert(source: Path, target: Path) -> None:
    files = sorted(source.glob("*.png"))
    logger.info("Numbering the classes of %d label maps from 0 on: %s, once.", len(files), target)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp's folders are private, datasets are shared
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(lambda file: _convert_file(file, unfinished / file.name), files):
                pass
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


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
