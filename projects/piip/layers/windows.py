"""Cutting a token grid into square windows and putting it together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["window_partition", "window_unpartition", "windows_in_grid"]


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts a grid into non-overlapping windows, aligned at the top left corner.

    The grid is padded with zeros at the right and the bottom to a multiple of ``window_size``; padded positions
    are not masked anywhere (specs of the released PIIP models: they take part in the attention).

    Args:
        x: tokens on their grid.
        window_size: side of a window in tokens, >= 1.

    Shape:
        x (B, h, w, C) -> (B * windows, window_size, window_size, C), windows in row-major order.
    """
    b, h, w, c = x.shape
    s = window_size
    rows, cols = _windows(h, s), _windows(w, s)
    # Padding by nothing copies. Where the sides are symbols, torch must not ask, and copies nothing.
    if torch.compiler.is_compiling() or (rows * s, cols * s) != (h, w):
        x = F.pad(x, (0, 0, 0, cols * s - w, 0, rows * s - h))
    x = x.view(b, rows, s, cols, s, c).transpose(2, 3)
    # Not by reshape, which asks whether it must copy.
    return x.clone(memory_format=torch.contiguous_format).view(b * rows * cols, s, s, c)


def window_unpartition(windows: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`window_partition`, without the padding.

    Shape:
        windows (B * windows, s, s, C), grid_size (h, w) -> (B, h, w, C)
    """
    h, w = grid_size
    s, c = windows.shape[1], windows.shape[-1]
    rows, cols = _windows(h, s), _windows(w, s)
    x = windows.view(-1, rows, cols, s, s, c).transpose(2, 3)
    x = x.clone(memory_format=torch.contiguous_format).view(-1, rows * s, cols * s, c)
    if all(isinstance(side, int) for side in grid_size):
        return x[:, :h, :w]
    # An export leaves the size open, on which it depends whether a part of a map lies in one piece. This always does.
    rows, cols = (torch.arange(side, device=x.device) for side in grid_size)
    return x.index_select(1, rows).index_select(2, cols)


def windows_in_grid(windows: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Windows that cover a grid without padding, as a view in the order of the grid.

    Shape:
        windows (B * rows * columns, s, s, C), grid_size (rows * s, columns * s) -> (B, rows, s, columns, s, C)
    """
    s, c = windows.shape[1], windows.shape[-1]
    return windows.view(-1, grid_size[0] // s, grid_size[1] // s, s, s, c).transpose(2, 3)


def _windows(side: int, window_size: int) -> int:
    """How many windows cover a side."""
    # Of positive numbers alone: ONNX rounds the division of negative ones the other way.
    return (side + window_size - 1) // window_size
