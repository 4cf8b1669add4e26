"""SKA in plain PyTorch, both gradients included: one pass over shifted views per tap."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["backward", "forward", "like"]

Box = tuple[slice, slice]
ALL = slice(None)


def like(x: Tensor) -> Tensor:
    """An empty tensor as the operator returns it for ``x``: channels-last if ``x`` is, else contiguous."""
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def taps(ks: int, height: int, width: int) -> Iterator[tuple[int, Box, Box]]:
    """For every tap that meets the map: its number, the outputs that it reaches, and the inputs that they take."""
    p = ks // 2
    for tap in range(ks * ks):
        dy, dx = tap // ks - p, tap % ks - p
        (oy, iy), (ox, ix) = _overlap(dy, height), _overlap(dx, width)
        if oy is not None and ox is not None:
            yield tap, (oy, ox), (iy, ix)


def _overlap(shift: int, size: int) -> tuple[slice, slice] | tuple[None, None]:
    if abs(shift) >= size:
        return None, None
    out = slice(max(0, -shift), min(size, size - shift))
    return out, slice(out.start + shift, out.stop + shift)


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    out = torch.zeros_like(like(x), dtype=_sum_dtype(x))
    w = w.to(x.dtype)
    _, _, k, height, width = w.shape
    for tap, o, i in taps(math.isqrt(k), height, width):
        for channels, j in _groups(x.shape[1], w.shape[1]):
            _add_product(out[(ALL, channels, *o)], x[(ALL, channels, *i)], w[(ALL, slice(j), tap, *o)])
    return out.to(x.dtype)


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    half = w.to(x.dtype)
    gx = torch.zeros_like(like(x), dtype=_sum_dtype(x))
    gw = torch.zeros_like(w, dtype=_sum_dtype(x))
    _, _, k, height, width = w.shape
    for tap, o, i in taps(math.isqrt(k), height, width):
        for channels, j in _groups(x.shape[1], w.shape[1]):
            g, v = grad[(ALL, channels, *o)], half[(ALL, slice(j), tap, *o)]
            _add_product(gx[(ALL, channels, *i)], g, v)
            _add_product(gw[(ALL, slice(j), tap, *o)], x[(ALL, channels, *i)], g)
    return gx.to(x.dtype), gw.to(x.dtype).to(w.dtype)


def _groups(channels: int, j: int) -> Iterator[tuple[slice, int]]:
    """Channels that use different weight channels, and how many those are."""
    for start in range(0, channels, j):
        yield slice(start, min(start + j, channels)), min(j, channels - start)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == torch.float16:
        total += a * b
    else:
        total.addcmul_(a.to(total.dtype), b.to(total.dtype))
