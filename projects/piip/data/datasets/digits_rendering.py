"""Draws the scenes of ``digits_scenes``: real handwritten digits, bright, overlapping, on dark textured backgrounds.

Everything here is a pure function of a random generator. All arithmetic is on integers, or on floats that hold
integers exactly, so that every machine draws the same bytes. Files and catalogs are in ``digits_scenes``.
"""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass

import numpy as np

__all__ = ["Scene", "encode_png", "render_scene", "upscale"]

MAX_DIGITS = 6
DIGIT_HEIGHT = (28, 61)  # pixels of the ink, half open
MIN_VISIBLE = 75  # percent of a digit's ink that the later ones leave visible
MAX_BOX_IOU = 0.3  # between any two digits, so that a detector with NMS at 0.5 can find both
MIN_CONTRAST = 80  # luminance by which a digit is brighter than both colours of the background
_FRACTIONS = 32  # sub-pixel positions of the interpolation


@dataclass(frozen=True)
class Scene:
    """One picture with its instances.

    Attributes:
        image: ``(S, S, 3)`` uint8, RGB.
        labels: the digit (0-9) of each instance.
        masks: ``(N, S, S)`` bool, the visible pixels of each instance; they are disjoint and never empty.
    """

    image: np.ndarray
    labels: list[int]
    masks: np.ndarray

    def semantic(self) -> np.ndarray:
        """The ``(S, S)`` uint8 label map: 0 is background, 1-10 are the digits 0-9."""
        classes = np.asarray([label + 1 for label in self.labels], dtype=np.uint8)
        return (self.masks * classes[:, None, None]).sum(axis=0, dtype=np.uint8)


@functools.cache
def _cubic_weights(source: int, target: int) -> np.ndarray:
    """Catmull-Rom interpolation as a ``(target, source)`` matrix of whole numbers; every row sums to ``2 * 32**3``."""
    one = _FRACTIONS
    matrix = np.zeros((target, source))
    for row in range(target):
        # Centre of the target pixel in source pixels: an integer part and a fraction in 32nds.
        position = (2 * row + 1) * source - target
        start, f = position // (2 * target), position % (2 * target) * one // (2 * target)
        weights = (
            -(f**3) + 2 * one * f**2 - one**2 * f,
            3 * f**3 - 5 * one * f**2 + 2 * one**3,
            -3 * f**3 + 4 * one * f**2 + one**2 * f,
            f**3 - one * f**2,
        )
        for offset, weight in enumerate(weights, start=-1):
            matrix[row, min(max(start + offset, 0), source - 1)] += weight
    return matrix


def upscale(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarges a small grid smoothly.

    Args:
        grid: ``(h, w)``, values 0-255.
        height: rows of the result.
        width: columns of the result.

    Returns:
        ``(height, width)`` int32, values 0-255.
    """
    # Both products stay below 2**53, where float64 is exact in whatever order BLAS adds.
    summed = _cubic_weights(grid.shape[0], height) @ grid.astype(np.float64) @ _cubic_weights(grid.shape[1], width).T
    scale = 2 * _FRACTIONS**3
    return np.clip(np.floor(summed / scale**2 + 0.5), 0, 255).astype(np.int32)


def encode_png(array: np.ndarray) -> bytes:
    """Packs an image as an uncompressed PNG.

    Compressed bytes differ between zlib builds; stored ones are the same everywhere, and quick to write and read.

    Args:
        array: ``(H, W)`` or ``(H, W, 3)`` uint8.
    """
    height, width = array.shape[:2]
    rows = array.reshape(height, -1)
    raw = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each row starts with its filter type: none
    pieces = [raw[i : i + 0xFFFF] for i in range(0, len(raw), 0xFFFF)]
    stream = b"\x78\x01" + b"".join(
        struct.pack("<BHH", i == len(pieces) - 1, len(piece), len(piece) ^ 0xFFFF) + piece
        for i, piece in enumerate(pieces)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if array.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream + struct.pack(">I", zlib.adler32(raw))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``over`` on ``under`` with ``alpha`` 0-255; int32 arguments broadcast, the result is int32."""
    total = under * (255 - alpha) + over * alpha + 128
    return (total + (total >> 8)) >> 8  # exactly the rounded quotient by 255, without a division


def _luminance(colour: np.ndarray) -> np.ndarray:
    """Perceived brightness 0-255 of RGB colours ``(..., 3)``."""
    return (colour @ np.array([299, 587, 114])) // 1000


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """One of five textures: clouds, stripes, checks, a gradient, blocks. ``(size, size)`` int32, 0-255."""
    kind = rng.integers(5)
    y, x = np.ogrid[:size, :size]
    if kind == 0:
        cells = int(rng.integers(3, 10))
        return upscale(rng.integers(0, 256, (cells, cells)), size, size)
    if kind == 1:
        a, b = rng.integers(-3, 4, 2)
        period = int(rng.integers(8, 25))
        return np.where((a * x + (b or 1) * y) % period < period // 2, 255, 0)
    if kind == 2:
        side = int(rng.integers(4, 17))
        return (x // side + y // side) % 2 * 255
    if kind == 3:
        a, b = rng.integers(-4, 5, 2)
        ramp = a * x + (b or 1) * y
        ramp = ramp - ramp.min()
        return ramp * 255 // ramp.max()
    side = int(rng.integers(2, 7))
    cells = -(-size // side)
    return rng.integers(0, 256, (cells, cells)).repeat(side, 0).repeat(side, 1)[:size, :size]


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured ground ``(size, size, 3)`` int32 and the two colours ``(2, 3)`` it is made of."""
    base = rng.integers(10, 121, 3, dtype=np.int32)
    other = np.clip(base + rng.integers(-45, 46, 3, dtype=np.int32), 0, 255)
    shades = _blend(base, other, np.arange(256, dtype=np.int32)[:, None])
    image = shades[_pattern(rng, size)]
    image += rng.integers(-8, 9, (size, size, 3), dtype=np.int8)
    return np.clip(image, 0, 255), np.stack([base, other])


def _colour(rng: np.random.Generator, ground: np.ndarray, used: list[np.ndarray]) -> np.ndarray:
    """A colour ``(3,)`` that stands out from the background and from the digits already there."""
    candidates = rng.integers(0, 256, (64, 3), dtype=np.int32)
    contrast = (_luminance(candidates)[:, None] - _luminance(ground)).min(axis=1)
    score = np.minimum(contrast, MIN_CONTRAST) * 1000
    if used:
        distance = np.abs(candidates[:, None] - np.stack(used)).sum(axis=-1).min(axis=1)
        score = score + np.minimum(distance, 120)
    return candidates[np.argmax(score)]  # the first of the best


def _glyph(rng: np.random.Generator, digit: np.ndarray, size: int) -> np.ndarray:
    """A digit at a random size and proportion, cut to its ink: opacity ``(h, w)`` int32, 0-255."""
    height = int(rng.integers(*DIGIT_HEIGHT)) * size // 128
    width = height * int(rng.integers(80, 121)) // 100
    padded = np.pad(digit, 1)  # a rim lets strokes at the edge of the 8x8 grid end as softly as the others
    smooth = upscale(padded * 255 // 16, max(height * 10 // 8, 10), max(width * 10 // 8, 10))
    alpha = np.clip((smooth - 88) * 5 // 2, 0, 255)
    ink = alpha >= 128
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return overlap / (sum(areas) - overlap)


def _place(
    rng: np.random.Generator, shape: tuple[int, int], boxes: list[tuple[int, int, int, int]], size: int
) -> tuple[int, int, int, int]:
    """Where to try a digit, ``(x0, y0, x1, y1)``: half of the time against one that is there, else anywhere."""
    height, width = shape
    x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
    if boxes and rng.integers(2):
        x0, y0, x1, y1 = boxes[int(rng.integers(len(boxes)))]
        x = min(max(int(rng.integers(x0 - width, x1)), 0), size - width)
        y = min(max(int(rng.integers(y0 - height, y1)), 0), size - height)
    return x, y, x + width, y + height


def render_scene(rng: np.random.Generator, digits: np.ndarray, targets: np.ndarray, size: int = 128) -> Scene:
    """Draws one scene.

    Args:
        rng: the only source of randomness.
        digits: ``(M, 8, 8)``, ink 0-16, to choose from.
        targets: ``(M,)``, the digit that each of them shows.
        size: side of the scene in pixels, at least 64; sizes of digits scale with it.

    Returns:
        A scene with 1 to 6 digits, each of which keeps at least 75 % of its ink visible.
    """
    image, ground = _background(rng, size)
    owner = np.zeros((size, size), dtype=np.uint8)  # 0, or 1 + the instance that is on top
    labels: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    colours: list[np.ndarray] = []
    areas = np.zeros(MAX_DIGITS, dtype=np.int64)  # ink of each digit
    visible = np.zeros(MAX_DIGITS, dtype=np.int64)  # what later ones have left of it
    for _ in range(int(rng.integers(1, MAX_DIGITS + 1))):
        choice = int(rng.integers(len(digits)))
        alpha = _glyph(rng, digits[choice], size)
        ink = alpha >= 128
        for _ in range(20):
            box = _place(rng, alpha.shape, boxes, size)
            if any(_box_iou(box, other) > MAX_BOX_IOU for other in boxes):
                continue
            window = np.s_[box[1] : box[3], box[0] : box[2]]
            hidden = np.bincount(owner[window][ink], minlength=MAX_DIGITS + 1)[1:]
            if ((visible - hidden) * 100 >= areas * MIN_VISIBLE).all():
                break
        else:
            continue  # no room for this one
        visible -= hidden
        areas[len(boxes)] = visible[len(boxes)] = ink.sum()
        colours.append(_colour(rng, ground, colours))
        image[window] = _blend(image[window], colours[-1], alpha[..., None])
        labels.append(int(targets[choice]))
        boxes.append(box)
        owner[window][ink] = len(boxes)
    masks = owner == np.arange(1, len(boxes) + 1, dtype=np.uint8)[:, None, None]
    return Scene(image.astype(np.uint8), labels, masks)
