"""Cutting a token grid into square windows and putting it together again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["window_partition", "window_unpartition"]


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
    x = F.pad(x, (0, 0, 0, -w % s, 0, -h % s))
    rows, cols = x.shape[1] // s, x.shape[2] // s
    return x.view(b, rows, s, cols, s, c).transpose(2, 3).reshape(b * rows * cols, s, s, c)


def window_unpartition(windows: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`window_partition`, without the padding.

    Shape:
        windows (B * windows, s, s, C), grid_size (h, w) -> (B, h, w, C)
    """
    h, w = grid_size
    s, c = windows.shape[1], windows.shape[-1]
    # Of positive numbers alone: ONNX rounds the division of negative ones the other way.
    rows, cols = (h + s - 1) // s, (w + s - 1) // s
    x = windows.view(-1, rows, cols, s, s, c).transpose(2, 3).reshape(-1, rows * s, cols * s, c)
    if all(isinstance(side, int) for side in grid_size):
        return x[:, :h, :w]
    # An export leaves the size open, on which it depends whether a part of a map lies in one piece. This always does.
    rows, cols = (torch.arange(side, device=x.device) for side in grid_size)
    return x.index_select(1, rows).index_select(2, cols)
