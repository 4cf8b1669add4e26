"""Biases of attention by the offset between two positions, for grids of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RESIZES", "offset_index", "position_bias"]

RESIZES = ("matrix", "offsets")


def position_bias(table: Tensor, grid: tuple[int, int], resize: str) -> Tensor:
    """The bias of every pair of positions of a grid.

    Args:
        table: biases by absolute row and column offset, for a square design grid.
        grid: rows and columns of the grid at hand.
        resize: what is resized, bicubically, where the grids differ. ``"matrix"``: the bias of all pairs of the design
            grid, as if it were an image, which mixes pairs of unlike offsets but is what the released detectors were
            trained with. ``"offsets"``: the table, so that the largest offset stays the largest.

    Shape:
        table (heads, R, R) -> (heads, N, N) with N = rows * columns
    """
    if resize == "offsets":
        table = F.interpolate(table[None], grid, mode="bicubic", align_corners=True)[0]
    else:
        positions = grid[0] * grid[1]
        grid = table.shape[1:]
    rows, columns = (_distances(n, table.device) for n in grid)
    bias = table[:, rows[:, None, :, None], columns[None, :, None, :]].flatten(3).flatten(1, 2)
    if resize == "matrix":
        bias = F.interpolate(bias[None], (positions, positions), mode="bicubic", align_corners=False)[0]
    return bias


def offset_index(resolution: int) -> Tensor:
    """Where the flat table of a design grid has the bias of every pair of positions, (R * R, R * R)."""
    distances = _distances(resolution)
    index = distances[:, None, :, None] * resolution + distances[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


def _distances(n: int, device: torch.device | None = None) -> Tensor:
    positions = torch.arange(n, device=device)
    return (positions[:, None] - positions).abs()
