"""Image sizes and random augmentations of the published segmentation recipes that Detectron2 lacks."""

from __future__ import annotations

from functools import partial

import numpy as np
from detectron2.data.transforms import Augmentation, ColorTransform, ResizeTransform
from PIL import Image

from ..errors import ConfigError

__all__ = ["PhotometricDistortion", "RandomRatioResize", "ResizeToMultiple"]


class RandomRatioResize(Augmentation):
    """Resizes an image, in proportion, to the largest size that fits into a frame of random size.

    The long edge stays within ``ratio * long_edge`` and the short one within ``ratio * short_edge``, with a ratio that
    is drawn uniformly. (``ResizeShortestEdge`` draws the short edge alone and leaves the limit of the long one fixed.)

    Args:
        long_edge: of the frame of ratio 1, in pixels.
        short_edge: its other edge.
        ratio_range: lowest and highest ratio.

    Raises:
        ConfigError: for numbers that are not positive or not in order.
    """

    def __init__(self, long_edge: int, short_edge: int, ratio_range: tuple[float, float] = (0.5, 2.0)) -> None:
        super().__init__()
        if not 0 < short_edge <= long_edge or not 0 < ratio_range[0] <= ratio_range[1]:
            raise ConfigError(
                f"RandomRatioResize needs 0 < short_edge <= long_edge and 0 < lowest <= highest ratio, but got "
                f"short_edge={short_edge}, long_edge={long_edge}, ratio_range={tuple(ratio_range)}."
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        ratio = np.random.uniform(*self.ratio_range)
        sides = image.shape[:2]
        factor = ratio * min(self.long_edge / max(sides), self.short_edge / min(sides))
        height, width = (max(1, int(side * factor + 0.5)) for side in sides)
        return ResizeTransform(*sides, height, width)


class ResizeToMultiple(Augmentation):
    """Resizes both sides up to the next multiple of a number, instead of padding them there.

    Args:
        divisor: pixels.

    Raises:
        ConfigError: unless it is positive.
    """

    def __init__(self, divisor: int = 32) -> None:
        super().__init__()
        if divisor < 1:
            raise ConfigError(f"divisor={divisor} of ResizeToMultiple must be positive.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> ResizeTransform:
        sides = image.shape[:2]
        return ResizeTransform(*sides, *(-(-side // self.divisor) * self.divisor for side in sides))


class PhotometricDistortion(Augmentation):
    """Random brightness, contrast, saturation and hue, each in half of the images; for RGB pictures of type uint8.

    Contrast comes before saturation and hue, or after them. Unlike torchvision's, brightness is an offset and contrast
    a factor on the pixel values.

    Source: SSD (arXiv:1512.02325), Sec. 2.2; the numbers of the released PIIP and LSNet segmentation recipes.

    Args:
        brightness: largest offset, of 255.
        contrast: lowest and highest factor.
        saturation: the same of the saturation.
        hue: largest rotation, in degrees.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 36,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> ColorTransform:
        chosen = np.random.randint(2, size=4)
        offset = chosen[0] * np.random.uniform(-self.brightness, self.brightness)
        factor = np.random.uniform(*self.contrast) if chosen[1] else 1.0
        saturation = np.random.uniform(*self.saturation) if chosen[2] else 1.0
        hue = chosen[3] * np.random.uniform(-self.hue, self.hue)
        contrast_first = bool(np.random.randint(2))
        return ColorTransform(partial(_distort, offset, factor, saturation, hue, contrast_first))


def _distort(
    offset: float, factor: float, saturation: float, hue: float, contrast_first: bool, image: np.ndarray
) -> np.ndarray:
    image = _linear(image, offset=offset)
    if contrast_first:
        image = _linear(image, factor)
    if saturation != 1 or hue:
        image = _in_hsv(image, saturation, hue)
    return image if contrast_first else _linear(image, factor)


def _linear(image: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    if factor == 1 and not offset:
        return image
    return np.clip(image * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    # Hue goes around in 256 steps.
    hsv[..., 0] += np.uint8(round(hue / 360 * 256) % 256)
    hsv[..., 1] = _linear(hsv[..., 1], saturation)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
