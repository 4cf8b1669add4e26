"""Fitting pretrained tensors to another patch size or position grid, as the released loaders do."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["resize_patch_embed", "resize_pos_embed"]


def resize_patch_embed(weight: Tensor, patch_size: int) -> Tensor:
    """Bicubic resize of a patch convolution, without antialiasing or rescaling of its magnitude.

    Shape:
        (C, 3, p, p) -> (C, 3, patch_size, patch_size)
    """
    if weight.shape[-1] == patch_size:
        return weight
    return F.interpolate(weight.float(), size=(patch_size, patch_size), mode="bicubic", align_corners=False)


def resize_pos_embed(pos_embed: Tensor, num_positions: int) -> Tensor:
    """Bicubic resize of a square position embedding, with or without a leading row for the class token.

    timm's own resampling antialiases, which would change the result.

    Args:
        num_positions: rows wanted: a square number, or one more for a leading row. That one is taken over as it is,
            dropped where it is not wanted, and zero where the source has none.

    Shape:
        (1, N, C) with N a square number or one more -> (1, num_positions, C)

    Raises:
        CheckpointError: when N is neither.
    """
    rows = pos_embed.shape[1]
    leading, wanted = (n - math.isqrt(n) ** 2 for n in (rows, num_positions))
    if leading > 1:
        raise CheckpointError(
            f"the position embedding has {rows} rows, which is no square number with or without a class token; "
            "it belongs to a model with another layout."
        )
    first, grid = pos_embed[:, :leading], pos_embed[:, leading:]
    old, new = math.isqrt(rows), math.isqrt(num_positions)
    if old != new:
        grid = grid.float().transpose(1, 2).unflatten(2, (old, old))
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    if not wanted:
        return grid
    return torch.cat([first if leading else torch.zeros_like(grid[:, :1]), grid], dim=1)
