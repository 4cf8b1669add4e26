"""Fitting pretrained tensors to another patch size, position grid or window, as the released loaders do."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["resize_patch_embed", "resize_pos_embed", "resize_relative_position_bias"]


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


def resize_relative_position_bias(table: Tensor, num_offsets: int) -> Tensor:
    """Fits a table of relative position biases to another window, by a cubic spline per head.

    The entries of the source are taken as further apart the further they are from offset zero, in a geometric
    progression that makes the outermost ones meet. Entries for a class token at the end are dropped.

    Args:
        num_offsets: rows wanted, (2 * window - 1) squared.

    Shape:
        (M, heads) with M the square of an odd number, or three more for a class token -> (num_offsets, heads)

    Raises:
        CheckpointError: when M is neither, or too small for a spline.

    Source: BEiT (arXiv:2106.08254), as in the released models.
    """
    rows = table.shape[0]
    old, new = math.isqrt(rows), math.isqrt(num_offsets)
    if old % 2 == 0 or rows - old**2 not in (0, 3):
        raise CheckpointError(
            f"{rows} relative position biases belong to no window: that is neither the square of an odd number "
            "nor three more for a class token."
        )
    table = table[: old**2]
    if old == new:
        return table
    if old < 5:
        raise CheckpointError(f"{rows} relative position biases are too few for a cubic spline to {num_offsets}.")
    from scipy.interpolate import RectBivariateSpline  # needed by no other model

    ratio = _ratio(terms=old // 2, reach=new // 2)
    steps = np.cumsum(ratio ** np.arange(old // 2))
    places = np.concatenate([-steps[::-1], [0], steps])
    wanted = np.arange(-(new // 2), new // 2 + 1)
    heads = [
        RectBivariateSpline(places, places, values)(wanted, wanted)
        for values in table.double().T.reshape(-1, old, old).numpy()
    ]
    return torch.from_numpy(np.stack(heads)).flatten(1).T.to(table.dtype).contiguous()


def _ratio(terms: int, reach: int) -> float:
    """Of the geometric progression from 1 whose terms add up to ``reach``, as the released code finds it."""
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        total = (1 - ratio**terms) / (1 - ratio)
        low, high = (low, ratio) if total > reach else (ratio, high)
    return ratio
