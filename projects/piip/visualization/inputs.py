"""Finding and reading pictures that a user names: files, folders, patterns, videos, bundled photographs."""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from ..errors import DataError, DependencyError, did_you_mean

__all__ = ["SAMPLES", "Source", "find_sources", "output_paths", "read_picture"]

# Photographs inside scikit-image's wheel that show classes of COCO.
SAMPLES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
_SAMPLE_PREFIX = "skimage:"
_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


@dataclass(frozen=True)
class Source:
    """A picture or a video on disk.

    Attributes:
        path: of the file.
        name: as the user knows it.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in _VIDEOS


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that names stand for, each once, in the order given (those of a folder or pattern sorted).

    Args:
        names: files; folders, for the pictures and videos directly inside; patterns with ``*``, ``?`` and ``**``;
            ``skimage:NAME`` for a photograph of scikit-image.

    Raises:
        DataError: when a name stands for nothing.
        DependencyError: when scikit-image is asked for and missing.
    """
    found: dict[Path, Source] = {}
    for name in names:
        for source in _expand(name):
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def _expand(name: str) -> list[Source]:
    if name.startswith(_SAMPLE_PREFIX):
        return [Source(_sample(name.removeprefix(_SAMPLE_PREFIX)), name)]
    path = Path(name).expanduser()
    if path.is_dir():
        known = _VIDEOS | Image.registered_extensions().keys()
        files = [p for p in sorted(path.iterdir()) if p.is_file() and p.suffix.lower() in known]
        if not files:
            raise DataError(f"folder {name!r} holds no pictures or videos; name another folder or a pattern.")
    elif path.exists():
        files = [path]
    elif glob.has_magic(name):
        files = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not files:
            raise DataError(f"pattern {name!r} matches no file; check it, and quote it so that it arrives as it is.")
    else:
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise DataError(f"input {name!r} does not exist; name a file, a folder or a pattern.{near}")
    return [Source(p, str(p)) for p in files]


def _sample(name: str) -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DependencyError(
            f"the photograph {name!r} is part of scikit-image, which is missing; pip install scikit-image."
        )
    folder = Path(spec.origin).parent / "data"
    pictures = {p.stem: p for p in folder.glob("*") if p.suffix in (".png", ".jpg")}
    file = pictures.get("motorcycle_left" if name == "motorcycle" else name)
    if file is None:
        raise DataError(f"scikit-image has no photograph {name!r}; try one of {', '.join(SAMPLES)}.")
    return file


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture upright, as RGB.

    Shape:
        (H, W, 3), uint8

    Raises:
        DataError: when it is missing, broken or not a picture.
    """
    try:
        return read_image(str(path), format="RGB")
    except Exception as error:  # Pillow has many words for a broken file
        reason = "it is not a picture" if type(error).__name__ == "UnidentifiedImageError" else error
        raise DataError(f"picture {str(path)!r} cannot be read ({reason}); replace it or leave it out.") from error


def output_paths(sources: Sequence[Source], folder: Path) -> list[Path]:
    """One file in ``folder`` for every source, under its own name where possible.

    Sources of the same name get numbers, so that none is written over another, nor over any of the inputs. PNG stays
    PNG, other pictures become JPEG; videos become MP4.
    """
    taken = {source.path.resolve() for source in sources}
    paths = []
    for source in sources:
        suffix = ".mp4" if source.is_video else ".png" if source.path.suffix.lower() == ".png" else ".jpg"
        number, path = 1, folder / f"{source.path.stem}{suffix}"
        while path.resolve() in taken:
            number += 1
            path = folder / f"{source.path.stem}_{number}{suffix}"
        taken.add(path.resolve())
        paths.append(path)
    return paths
