"""How many images a worker of the data loader prepares per second, and what takes its time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from ..data import DetectionMapper
from ..data.transforms import FastResizeShortestEdge, published_short_edge
from .records import Row, environment
from .timing import Settings, in_turns

__all__ = ["CASES", "DataCase"]

_SIZE = 480, 640  # of most of COCO's images
_OBJECTS, _CORNERS = 7, 24  # of an image, of a polygon


@dataclass(frozen=True)
class DataCase:
    """Training's mapper on a JPEG with masks.

    Attributes:
        long_edge: pixels that the image's longer side becomes.
    """

    long_edge: int

    @property
    def name(self) -> str:
        return f"mapper, 640x480 JPEG to {self.long_edge}"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return True

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the mapper with Pillow's and torch's resizing; then of its parts.

        Raises:
            ArithmeticError: when the two make different images.
        """
        settings = Settings("cpu", rounds=settings.rounds, seconds=settings.seconds)
        edges = published_short_edge(self.long_edge), self.long_edge
        resizes = T.ResizeShortestEdge([edges[0]] * 2, edges[1]), FastResizeShortestEdge([edges[0]] * 2, edges[1])
        with tempfile.TemporaryDirectory() as folder:
            sample = _sample(Path(folder))
            mappers = [_mapper(resize) for resize in resizes]
            results = [mapper(sample) for mapper in mappers]
            error = _check(self.name, *(result["image"].numpy() for result in results))
            image = read_image(sample["file_name"], "RGB")
            plain, fast = (resize.get_transform(image) for resize in resizes)
            ways: dict[str, Callable[[], object]] = {
                "mapper": partial(mappers[0], sample),
                "mapper, fast resize": partial(mappers[1], sample),
                "part: decoding": partial(read_image, sample["file_name"], "RGB"),
                "part: resize by Pillow": partial(plain.apply_image, image),
                "part: resize by torch": partial(fast.apply_image, image),
            }
            turns = in_turns(ways, settings)
        numbers = {"mapper, fast resize": {"mean_difference": error}}
        about = environment(settings)
        return [
            Row(
                "data",
                self.name,
                name,
                *turn.values,
                numbers={"images_per_s": 1000 / turn.median, **numbers.get(name, {})},
                environment=about,
            )
            for name, turn in turns.items()
        ]


CASES = [DataCase(1568)]


def _mapper(resize: T.Augmentation) -> DetectionMapper:
    """As in the published recipes, but for the flip, which would be random."""
    return DetectionMapper(
        is_train=True,
        augmentations=[resize],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon",
    )


def _sample(folder: Path) -> dict:
    """A picture with the detail of a photograph, and objects of random outlines."""
    rng = np.random.default_rng(0)
    height, width = _SIZE
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC), dtype=np.float32)
    picture = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    path = folder / "picture.jpg"
    Image.fromarray(picture).save(path, quality=90)
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    annotations = []
    for k in range(_OBJECTS):
        centre, radius = rng.uniform((120, 120), (width - 120, height - 120)), rng.uniform(30, 110, _CORNERS)
        corners = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        low, high = corners.min(0), corners.max(0)
        annotations.append(
            {
                "bbox": [*low, *(high - low)],
                "bbox_mode": 1,  # x, y, width, height
                "category_id": k,
                "segmentation": [corners.flatten().tolist()],
                "iscrowd": 0,
            }
        )
    return {"file_name": str(path), "height": height, "width": width, "image_id": 0, "annotations": annotations}


def _check(name: str, plain: np.ndarray, fast: np.ndarray) -> float:
    """Mean difference in steps of 255, which rounding may make."""
    if plain.shape != fast.shape:
        raise ArithmeticError(f"{name}: the two resizes make {plain.shape} and {fast.shape}.")
    error = float(np.abs(plain.astype(np.int16) - fast).mean())
    if not error < 0.1:
        raise ArithmeticError(f"{name}: the two resizes differ by {error:.2f} of 255 on average.")
    return error
