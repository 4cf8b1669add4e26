"""Reading and writing videos through OpenCV, which is only imported here and when needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from ..errors import DataError, DependencyError

__all__ = ["annotate_video", "require_opencv"]


def require_opencv() -> ModuleType:
    """The module ``cv2``.

    Raises:
        DependencyError: when OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise DependencyError(
            f"videos need OpenCV ({error}); `pip install opencv-python-headless`, or this project with [demo]."
        ) from error
    return cv2


def annotate_video(source: Path, target: Path, annotate: Callable[[np.ndarray, int], np.ndarray]) -> int:
    """Writes a video whose frames are made from those of another, and shows frames, speed and remaining time.

    Args:
        source: any video that OpenCV reads.
        target: MP4; appears when it is complete.
        annotate: makes a frame, RGB uint8 (H, W, 3), from a frame and its number; all must have one size.

    Returns:
        the number of frames.

    Raises:
        DataError: when the source cannot be read as a video, or the target cannot be written.
    """
    cv2 = require_opencv()
    reader = cv2.VideoCapture(str(source))
    if not reader.isOpened():
        raise DataError(f"video {str(source)!r} cannot be opened; it is broken or of a kind that OpenCV cannot decode.")
    total = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    fps = reader.get(cv2.CAP_PROP_FPS)
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".mp4")
    os.close(fd)
    writer, count = None, 0
    try:
        with tqdm(total=total if total > 0 else None, unit="frame", desc=source.name) as progress:
            while True:
                ok, frame = reader.read()
                if not ok:
                    break
                frame = annotate(np.ascontiguousarray(frame[:, :, ::-1]), count)
                if writer is None:
                    size = frame.shape[1], frame.shape[0]
                    writer = cv2.VideoWriter(temporary, cv2.VideoWriter_fourcc(*"mp4v"), fps if fps > 0 else 25.0, size)
                    if not writer.isOpened():
                        raise DataError(f"video {str(target)!r} cannot be written: this OpenCV has no MPEG-4 encoder.")
                writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
                count += 1
                progress.update()
        if writer is None:
            raise DataError(f"video {str(source)!r} has no readable frame; it is broken or empty.")
        writer.release()
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        reader.release()
        if writer is not None:
            writer.release()
        if os.path.exists(temporary):
            os.remove(temporary)
    return count
