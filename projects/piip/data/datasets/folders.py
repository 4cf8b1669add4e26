"""Folders of files that are made on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import file_lock

from ...errors import DataError

__all__ = ["make_folder"]


def make_folder(folder: str | os.PathLike, fill: Callable[[Path], None]) -> None:
    """Makes a folder unless it is there; it appears whole or not at all. Of several processes one makes it.

    Args:
        folder: where it shall be.
        fill: writes the files into the folder that it is given.

    Raises:
        DataError: if it cannot be written.
    """
    target = Path(folder)
    if target.is_dir():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(target)):
            if not target.is_dir():
                _make(target, fill)
    except OSError as error:
        raise DataError(
            f"The data cannot be written to {str(folder)!r} ({error.strerror or error}); make the folder writable, or "
            "point DETECTRON2_DATASETS at one that is."
        ) from error


def _make(target: Path, fill: Callable[[Path], None]) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp's folders are private, datasets are shared
        fill(unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
