"""Image sizes and random augmentations of the published segmentation recipes that Detectron2 lacks."""

from __future__ import annotations

from collections.abc import Callable
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
        brightness = partial(_linear, offset=np.random.uniform(-self.brightness, self.brightness))
        contrast = partial(_linear, factor=np.random.uniform(*self.contrast))
        saturation = partial(_in_hsv, saturation=np.random.uniform(*self.saturation))
        hue = partial(_in_hsv, hue=np.random.uniform(-self.hue, self.hue))
        steps = [brightness, contrast, saturation, hue]
        if np.random.randint(2):
            steps = [brightness, saturation, hue, contrast]
        steps = [step for step, chosen in zip(steps, np.random.randint(2, size=4), strict=True) if chosen]
        return ColorTransform(partial(_one_after_another, steps))


def _one_after_another(steps: list[Callable[[np.ndarray], np.ndarray]], image: np.ndarray) -> np.ndarray:
    for step in steps:
        image = step(image)
    return image


def _linear(image: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    return np.clip(image * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, saturation: float = 1.0, hue: float = 0.0) -> np.ndarray:
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    # Hue goes around in 256 steps.
    hsv[..., 0] += np.uint8(round(hue / 360 * 256) % 256)
    hsv[..., 1] = _linear(hsv[..., 1], saturation)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
