"""SKA in plain PyTorch, both gradients included: one multiply-add per tap of a map and its shifted neighbourhood.

This goes in blocks that stay in the processor's cache: up to ten times as fast as laying out all neighbourhoods, and
without their memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory import dense_like, is_channels_last

__all__ = ["backward", "forward", "forward_normed", "missing", "obstacle"]

# Elements of x per block, whose buffers then take 16 MB in float32; smaller ones leave threads without work.
_BLOCK = 1024 * 1024
# Rows of so many pixels are copied side by side: PyTorch is slow at short ones.
_NARROW = 16


def missing() -> None:
    """Nothing is."""


def obstacle(x: Tensor, w: Tensor) -> None:
    """There is none."""


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    out = dense_like(x)
    if lacking := -x.shape[1] % w.shape[1]:
        return out.copy_(forward(_more_channels(x, lacking), w)[:, : x.shape[1]])
    maps = _maps(x, w)
    for block_x, block_w, block_out in maps.blocks(x, w, out):
        values, weights = maps.spread(block_x, maps.margin), maps.spread(block_w)
        total = maps.sums(block_out)
        for tap, (here, there) in enumerate(maps.taps):
            _add_product(total[here], values[there], weights[:, tap : tap + 1][here])
        if total is not block_out:
            block_out.copy_(maps.gather(total))
    return out


def forward_normed(
    x: Tensor,
    w: Tensor,
    norms: Sequence[Tensor],
    eps: Sequence[float],
    aggregate: Callable[[Tensor, Tensor], Tensor] = forward,
) -> Tensor:
    """See :func:`piip.layers.normed_ska`; ``aggregate`` is what computes SKA."""
    gain, bias, *batch_norm = norms
    normed = F.group_norm(w.flatten(1, 2).contiguous(), w.shape[1], gain, bias, eps[0]).unflatten(1, w.shape[1:3])
    weight, bias, mean, var = batch_norm
    return x + F.batch_norm(aggregate(x, normed.to(x.dtype)), mean, var, weight, bias, eps=eps[1])


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    gx, gw = dense_like(x), torch.empty_like(w)
    if lacking := -x.shape[1] % w.shape[1]:
        more, gw = backward(_more_channels(grad, lacking), _more_channels(x, lacking), w)
        return gx.copy_(more[:, : x.shape[1]]), gw
    maps = _maps(x, w)
    for block_x, block_w, block_grad, block_gx, block_gw in maps.blocks(x, w, grad, gx, gw):
        values, weights, grads = maps.spread(block_x, maps.margin), maps.spread(block_w), maps.spread(block_grad)
        total, shared = maps.zeros(block_x, maps.sum_dtype, maps.margin), maps.zeros(block_w, maps.sum_dtype)
        products = maps.zeros(block_x, maps.dtype)
        for tap, (here, there) in enumerate(maps.taps):
            _add_product(total[there], grads[here], weights[:, tap : tap + 1][here])
            torch.mul(grads[here], values[there], out=products[here])
            torch.sum(products[here], dim=1, dtype=maps.sum_dtype, out=shared[:, tap][here])
        block_gx.copy_(maps.gather(total, maps.margin))
        block_gw.copy_(maps.gather(shared))
    return gx, gw


class _Maps:
    """How taps of maps of one size are reached: as shifted windows of them.

    Blocks of maps are (b, groups, j, H, W), where the channels of a group have different weights, and blocks of weights
    (b, taps, j, H, W). Buffers lie in memory as ``x`` does.

    Attributes:
        taps: for every tap, which pixels it reaches and which ones it takes there.
        margin: what a buffer of values needs around the map for that.
        dtype, sum_dtype: of values and products, and of their sums.
    """

    margin = 0

    def __init__(self, x: Tensor, w: Tensor) -> None:
        self.height, self.width = x.shape[-2:]
        self.ks = math.isqrt(w.shape[2])
        self.dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        self.sum_dtype = torch.promote_types(self.dtype, torch.float32)
        self.channels_last = is_channels_last(x)
        self.taps = [self.tap(dy, dx) for dy in range(self.ks) for dx in range(self.ks)]

    def tap(self, dy: int, dx: int) -> tuple[tuple, tuple]:
        """Where the tap of this row and column finds what it adds to."""
        (y, from_y), (x, from_x) = _overlap(dy - self.ks // 2, self.height), _overlap(dx - self.ks // 2, self.width)
        return (..., y, x), (..., from_y, from_x)

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cuts x, w and tensors like them into blocks, as views."""
        b, c = tensors[0].shape[:2]
        j = tensors[1].shape[1]
        views = [t.unflatten(1, (c // j, j)) if t.ndim == 4 else t.transpose(1, 2) for t in tensors]
        image = max(1, tensors[0][:1].numel())
        images = max(1, _BLOCK // image)
        # Channels that lie side by side stay together.
        channels = j if self.channels_last else max(1, min(j, j * _BLOCK // image))
        for first in range(0, b, images):
            for channel in range(0, j, channels):
                yield tuple(t[first : first + images, :, channel : channel + channels] for t in views)

    def zeros(self, block: Tensor, dtype: torch.dtype, margin: int = 0) -> Tensor:
        """A buffer for sums."""
        order = (0, 3, 4, 1, 2) if self.channels_last else (0, 1, 2, 3, 4)
        return torch.empty_permuted(block.shape, order, dtype=dtype, device=block.device).zero_()

    def sums(self, out: Tensor) -> Tensor:
        """A buffer for the sums of a block of outputs: those themselves, where their type is good enough."""
        return out.zero_() if out.dtype == self.sum_dtype else self.zeros(out, self.sum_dtype)

    def spread(self, block: Tensor, margin: int = 0) -> Tensor:
        """Values in memory order of x: a copy, unless their rows are so already."""
        if not self.channels_last and block.stride(-1) == 1:
            return block.to(self.dtype)
        order = (0, 3, 4, 1, 2) if self.channels_last else (0, 1, 2, 3, 4)
        inverse = [order.index(dim) for dim in range(5)]
        return block.to(self.dtype).permute(order).contiguous().permute(inverse)

    def gather(self, buffer: Tensor, margin: int = 0) -> Tensor:
        """The map in a buffer; a view."""
        return buffer


class _NarrowMaps(_Maps):
    """Maps in rows of ``width + p`` elements, the last ``p`` of them zeros: every tap is one offset for all pixels."""

    def __init__(self, x: Tensor, w: Tensor) -> None:
        p = math.isqrt(w.shape[2]) // 2
        self.pitch = x.shape[-1] + p
        self.length = x.shape[-2] * self.pitch
        # p rows and p columns of zeros, where taps look.
        self.margin = (self.pitch + 1) * p
        super().__init__(x, w)

    def tap(self, dy: int, dx: int) -> tuple[tuple, tuple]:
        offset = dy * self.pitch + dx
        return (..., slice(0, self.length)), (..., slice(offset, offset + self.length))

    def sums(self, out: Tensor) -> Tensor:
        return self.zeros(out, self.sum_dtype)

    def zeros(self, block: Tensor, dtype: torch.dtype, margin: int = 0) -> Tensor:
        return torch.zeros(*block.shape[:3], self.length + 2 * margin, dtype=dtype, device=block.device)

    def spread(self, block: Tensor, margin: int = 0) -> Tensor:
        flat = self.zeros(block, self.dtype, margin)
        self.gather(flat, margin).copy_(block)
        return flat

    def gather(self, buffer: Tensor, margin: int = 0) -> Tensor:
        flat = buffer[..., margin : margin + self.length]
        return flat.unflatten(-1, (self.height, self.pitch))[..., : self.width]


def _maps(x: Tensor, w: Tensor) -> _Maps:
    narrow = x.shape[-1] < _NARROW and not is_channels_last(x)
    return _NarrowMaps(x, w) if narrow else _Maps(x, w)


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Positions from where a shift stays inside, and where it leads to."""
    start = min(max(0, -shift), size)
    stop = max(start, min(size, size - shift))
    return slice(start, stop), slice(max(0, start + shift), max(0, stop + shift))


def _more_channels(x: Tensor, count: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, count))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addcmul_(a, b)
    else:
        total += a * b
