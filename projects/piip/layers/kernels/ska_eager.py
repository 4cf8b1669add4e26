"""SKA in plain PyTorch, both gradients included.

Maps are copied into rows with zeros between them, so that a step to a neighbour is an offset into flat memory and
every tap is one long multiply-add. This goes in blocks that stay in the processor's cache: 1.5 to 10 times as fast as
laying out all neighbourhoods, and without their memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .memory import dense_like, is_channels_last

__all__ = ["backward", "forward", "obstacle"]

# Elements of x per block, whose buffers then take 4 MB in float32.
_BLOCK = 256 * 1024


def obstacle(x: Tensor, w: Tensor) -> None:
    """There is none."""
    return


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    out = dense_like(x)
    if missing := -x.shape[1] % w.shape[1]:
        return out.copy_(forward(_more_channels(x, missing), w)[:, : x.shape[1]])
    maps = _FlatMaps(x, w)
    for block_x, block_w, block_out in maps.blocks(x, w, out):
        padded, weights = maps.spread(block_x, maps.margin), maps.spread(block_w)
        total = maps.zeros(block_x, maps.length, maps.sum_dtype)
        for tap, offset in enumerate(maps.offsets):
            _add_product(total, padded[..., offset : offset + maps.length], weights[:, tap : tap + 1])
        block_out.copy_(maps.gather(total))
    return out


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    gx, gw = dense_like(x), torch.empty_like(w)
    if missing := -x.shape[1] % w.shape[1]:
        more, gw = backward(_more_channels(grad, missing), _more_channels(x, missing), w)
        return gx.copy_(more[:, : x.shape[1]]), gw
    maps = _FlatMaps(x, w)
    for block_x, block_w, block_grad, block_gx, block_gw in maps.blocks(x, w, grad, gx, gw):
        padded, weights = maps.spread(block_x, maps.margin), maps.spread(block_w)
        grads, product = maps.spread(block_grad), maps.zeros(block_x, maps.length, maps.dtype)
        total = maps.zeros(block_x, maps.length + 2 * maps.margin, maps.sum_dtype)
        for tap, offset in enumerate(maps.offsets):
            here = slice(offset, offset + maps.length)
            _add_product(total[..., here], grads, weights[:, tap : tap + 1])
            torch.mul(grads, padded[..., here], out=product)
            block_gw[:, tap] = maps.gather(product.sum(dim=1, dtype=maps.sum_dtype))
        block_gx.copy_(maps.gather(total, maps.margin))
    return gx, gw


class _FlatMaps:
    """Flat memory for maps of one size: rows of ``width + p`` elements, the last ``p`` of them zeros.

    Channels are seen as (groups, J), those of a group having different weights; weights as (taps, J). Where channels
    come last in ``x``, they do in flat memory too.
    """

    def __init__(self, x: Tensor, w: Tensor) -> None:
        self.height, self.width = x.shape[-2:]
        ks = math.isqrt(w.shape[2])
        self.pitch = self.width + ks // 2
        self.length = self.height * self.pitch
        # p rows and p columns of zeros around the map, where taps look.
        self.margin = (self.pitch + 1) * (ks // 2)
        self.offsets = [dy * self.pitch + dx for dy in range(ks) for dx in range(ks)]
        # Of weights and products, and of their sums.
        self.dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        self.sum_dtype = torch.promote_types(self.dtype, torch.float32)
        self.channels_last = is_channels_last(x)

    def blocks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cuts tensors like x and w, given in any order but x first, into views (b, groups or taps, j, H, W)."""
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

    def zeros(self, block: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Zeroed flat memory for a block, (b, groups or taps, j, length)."""
        order = (0, 3, 1, 2) if self.channels_last else (0, 1, 2, 3)
        shape = (*block.shape[:3], length)
        return torch.empty_permuted(shape, order, dtype=dtype, device=block.device).zero_()

    def spread(self, block: Tensor, margin: int = 0) -> Tensor:
        """A block in flat memory, with zeros of ``margin`` elements before and behind."""
        flat = self.zeros(block, self.length + 2 * margin, self.dtype)
        self.gather(flat, margin).copy_(block)
        return flat

    def gather(self, flat: Tensor, margin: int = 0) -> Tensor:
        """The maps in flat memory, (..., H, W); a view."""
        return flat[..., margin : margin + self.length].unflatten(-1, (self.height, self.pitch))[..., : self.width]


def _more_channels(x: Tensor, count: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, count))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addcmul_(a, b)
    else:
        total += a * b
