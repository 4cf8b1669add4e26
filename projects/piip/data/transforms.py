"""Image sizes and random augmentations of the published recipes, made of Detectron2's own."""

from __future__ import annotations

import detectron2.data.transforms as T
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import ConfigError

__all__ = ["FastResizeShortestEdge", "large_scale_jitter", "multi_scale", "multi_scale_test", "published_short_edge"]


def published_short_edge(long_edge: int) -> int:
    """The short edge that the published PIIP recipes pair with a long edge: the proportion 800 : 1333, rounded down.

    1120 -> 672, 1344 -> 806, 1568 -> 941, 1792 -> 1075 pixels.
    """
    return long_edge * 800 // 1333


def multi_scale(factor: float, max_size: int) -> T.AugmentationList:
    """Multi-scale training of the released 6B detectors and of DINO: random sizes, and random crops half of the time.

    The short edge becomes one of 480, 512, ..., 800 pixels, the long edge at most 1333. Before that, every second image
    is made smaller or larger (short edge 400, 500 or 600) and a part of 384 to 600 pixels per side is cut out. In the
    end the image is cut to at most ``max_size`` per side. Nothing guarantees that a crop contains an object.

    Source: DETR (arXiv:2005.12872), Sec. 4; PIIP released recipes for the factor and the last crop.

    Args:
        factor: multiplies all these numbers of pixels but the last, rounded down.
        max_size: pixels per side that are left at most; the released recipes take the highest resolution of the model.

    Raises:
        ConfigError: for a factor or size that is not positive.
    """
    _check_positive("factor", factor)
    _check_positive("max_size", max_size)
    cut_first = T.AugmentationList(
        [
            T.ResizeShortestEdge([int(edge * factor) for edge in (400, 500, 600)], sample_style="choice"),
            T.RandomCrop("absolute_range", (int(384 * factor), int(600 * factor))),
        ]
    )
    return T.AugmentationList(
        [
            T.RandomApply(cut_first, prob=0.5),
            T.ResizeShortestEdge(
                [int(edge * factor) for edge in range(480, 801, 32)], int(1333 * factor), sample_style="choice"
            ),
            T.RandomCrop("absolute", (max_size, max_size)),
        ]
    )


def multi_scale_test(factor: float) -> T.ResizeShortestEdge:
    """The image size that models of :func:`multi_scale` are tested at: its largest.

    Args:
        factor: the one of the training; 1 stands for 800 x 1333 pixels, 1.5 for 1200 x 1999.
    """
    _check_positive("factor", factor)
    return T.ResizeShortestEdge(int(800 * factor), int(1333 * factor))


def large_scale_jitter(size: int, min_scale: float = 0.1, max_scale: float = 2.0) -> T.AugmentationList:
    """Scales an image to somewhere between a tenth and twice the size of a square, and cuts it to the square.

    Smaller images stay smaller: padding is the model's business.

    Source: Simple Copy-Paste (arXiv:2012.07177), Sec. 3; ViTDet (arXiv:2203.16527), App. A.2.

    Args:
        size: pixels per side of the square.
        min_scale: lowest scale, relative to the largest one at which the image fits into the square.
        max_scale: highest scale.

    Raises:
        ConfigError: for a size that is not positive, or scales that are not in order.
    """
    _check_positive("size", size)
    if not 0 < min_scale <= max_scale:
        raise ConfigError(f"large_scale_jitter needs 0 < min_scale <= max_scale, but got {min_scale} and {max_scale}.")
    return T.AugmentationList(
        [T.ResizeScale(min_scale, max_scale, size, size), T.FixedSizeCrop((size, size), pad=False)]
    )


class FastResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``, same arguments, which resizes photographs by torch instead of Pillow.

    That takes less than half the time. Filter and sizes are the same; roundings differ, so a few pixels in a hundred
    differ by 1 or 2 of 255. Published recipes keep Pillow's, recipes of our own have this one. To use it in another:
    ``dataloader.train.mapper.augmentations.0._target_=piip.data.transforms.FastResizeShortestEdge``.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        plain = super().get_transform(image)
        if type(plain) is not T.ResizeTransform:  # an edge of 0 changes nothing
            return plain
        return _FastResizeTransform(plain.h, plain.w, plain.new_h, plain.new_w, plain.interp)


class _FastResizeTransform(T.ResizeTransform):
    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if (self.interp if interp is None else interp) != Image.BILINEAR or img.dtype != np.uint8 or img.ndim != 3:
            return super().apply_image(img, interp)
        # A copy: torch wants arrays that can be written and have no negative strides.
        image = torch.from_numpy(img.copy()).permute(2, 0, 1)[None]
        size = self.new_h, self.new_w
        return F.interpolate(image, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name}={value} of an augmentation must be positive.")
