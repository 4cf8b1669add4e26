"""The image pyramid: one image batch, one resized copy per branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

__all__ = ["check_input", "image_pyramid"]


def check_input(image: Tensor, stride: int) -> None:
    """Refuses an input that patches of ``stride`` pixels do not tile, which would silently lose its border.

    Raises:
        ConfigError: unless ``image`` is (B, 3, H, W) with H and W multiples of ``stride``.
    """
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % stride or image.shape[3] % stride:
        raise ConfigError(
            f"the backbone got an input of shape {tuple(image.shape)}; it needs (B, 3, H, W) with H and W multiples of "
            f"{stride}: resize or pad the images to that (a Backbone tells it as size_divisibility)."
        )


def image_pyramid(image: Tensor, resolutions: Sequence[int]) -> list[Tensor]:
    """Resizes a batch for every branch; the batch itself is the copy of the highest resolution.

    Only the ratios of ``resolutions`` count. The factor itself is handed to the bilinear resize, without
    antialiasing, and sizes are rounded down: this decides the sampling grid whenever a size is no whole number, and
    the released weights were trained so.

    Source: PIIP released models; paper (arXiv:2501.07783) Sec. 3.1.

    Args:
        image: normalised and padded batch.
        resolutions: pixels per side that each branch is meant for, highest first.

    Shape:
        image (B, 3, H, W) -> one (B, 3, H * r // r_max, W * r // r_max) per resolution r.
    """
    copies = []
    for resolution in resolutions:
        factor = resolution / resolutions[0]
        if factor == 1:
            copies.append(image)
        else:
            # Half-precision coordinates would be off by pixels; the released code resizes in float32, too.
            small = F.interpolate(image.float(), scale_factor=factor, mode="bilinear", align_corners=False)
            copies.append(small.to(image.dtype))
    return copies
