"""Self-attention over a token grid, globally or in windows, around whatever projections a family has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from .windows import window_partition, window_unpartition

__all__ = ["grid_attention"]


def grid_attention(
    x: Tensor,
    grid_size: tuple[int, int],
    window_size: int,
    project: Callable[[Tensor], Sequence[Tensor]],
    num_heads: int,
    bias: Tensor | None = None,
    pad_after_projection: bool = False,
) -> Tensor:
    """Multi-head self-attention up to its output projection.

    Windows that exceed the grid are padded with zero tokens before the projection and nothing masks them, so that a
    padded key equals the projection's bias: the released PIIP models were trained so.

    Args:
        x: tokens, row by row; prefix tokens may stand before them if the attention is global.
        grid_size: rows and columns of the tokens.
        window_size: tokens per side of a window, 0 for global attention.
        project: gives queries, keys and values, each as wide as its input.
        num_heads: heads, which divide the width.
        bias: added to the attention logits, broadcast to (batch * windows, num_heads, keys, keys).
        pad_after_projection: pad queries, keys and values with zeros instead of the tokens.

    Shape:
        x (B, N, C) -> (B, N, C)
    """
    if not window_size:
        qkv = project(x)
    elif pad_after_projection:
        qkv = [window_partition(t.unflatten(1, grid_size), window_size).flatten(1, 2) for t in project(x)]
    else:
        qkv = project(window_partition(x.unflatten(1, grid_size), window_size).flatten(1, 2))
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in qkv)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    if not window_size:
        return out
    return window_unpartition(out.unflatten(1, (window_size, window_size)), grid_size).flatten(1, 2)
