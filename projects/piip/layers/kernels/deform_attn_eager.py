"""Deformable attention in plain PyTorch, one image at a time.

Forward, every query and head is a bag of cells with weights, four per sample, which ``embedding_bag`` adds up where the
values lie. That beats grid_sample with its one map per channel, but its own gradients are slow; these are of
grid_sample, which is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward", "missing", "obstacle"]


def missing() -> None:
    """Nothing is."""


def obstacle(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> None:
    """There is none."""


def forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """See :func:`piip.layers.deform_attn`; ``sizes`` are height and width of every level, one after the other."""
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if out.numel():
        for image in zip(out, value, locations, weights, strict=True):
            image[0].copy_(_sample(*image[1:], sizes))
    return out


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``value``, ``locations`` and ``weights``."""
    results = tuple(t.new_empty(t.shape) for t in (value, locations, weights))
    if not grad.numel():
        results[0].zero_()
        return results
    for gv, gx, gw, g, v, x, w in zip(*results, grad, value, locations, weights, strict=True):
        first = 0
        for level, (height, width) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
            cells = slice(first, first + height * width)
            first = cells.stop
            maps = v[cells].unflatten(0, (height, width))
            gradients = _level_gradients(g, maps, x[:, :, level], w[:, :, level])
            for whole, part in zip((gv[cells], gx[:, :, level], gw[:, :, level]), gradients, strict=True):
                whole.copy_(part)
    return results


def _sample(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """One image: value (N, M, D), locations (Q, M, L, P, 2), weights (Q, M, L, P) -> (Q, M * D)."""
    queries, heads, levels, points = weights.shape
    dtype, device = locations.dtype, value.device
    grids = list(zip(sizes[::2], sizes[1::2], strict=True))
    # A ring of zeros around every map: what samples outside take.
    pitches = [width + 2 for _, width in grids]
    table = torch.zeros(sum((h + 2) * (w + 2) for h, w in grids), *value.shape[1:], dtype=dtype, device=device)
    index = torch.empty(queries, heads, levels, points, 4, dtype=torch.int32, device=device)
    share = torch.empty(queries, heads, levels, points, 4, dtype=dtype, device=device)
    head = torch.arange(heads, dtype=torch.int32, device=device)[:, None]
    start = 0
    values = value.split([h * w for h, w in grids])
    for level, ((height, width), pitch, x) in enumerate(zip(grids, pitches, values, strict=True)):
        cells = table[start : start + (height + 2) * pitch].unflatten(0, (height + 2, pitch))
        cells[1:-1, 1:-1].copy_(x.unflatten(0, (height, width)))
        low, fraction = zip(
            *(_split(locations[:, :, level, :, axis], size) for axis, size in enumerate((width, height))), strict=True
        )
        corner = low[1].mul_(pitch).add_(low[0]).add_(start).mul_(heads).add_(head)
        for tap, step in enumerate((0, 1, pitch, pitch + 1)):
            torch.add(corner, step * heads, out=index[:, :, level, :, tap])
        _shares(weights[:, :, level], *fraction, share[:, :, level])
        start += (height + 2) * pitch
    bags = F.embedding_bag(
        index.view(queries * heads, -1),
        table.flatten(0, 1),
        mode="sum",
        per_sample_weights=share.view(queries * heads, -1),
    )
    return bags.view(queries, -1)


def _split(location: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell of the ringed map before a location, and the distance from there; NaN stays NaN there."""
    place = location.mul(size).add_(0.5).clamp_(0, size + 1)
    low = place.floor().clamp_(max=size)
    return low.nan_to_num(nan=0).to(torch.int32), place.sub_(low)


def _shares(weight: Tensor, x: Tensor, y: Tensor, out: Tensor) -> None:
    """Weights of the four cells around a location."""
    below = weight * y
    above = weight - below
    for row, part in enumerate((above, below)):
        right = torch.mul(part, x, out=out[..., 2 * row + 1])
        torch.sub(part, right, out=out[..., 2 * row])


def _level_gradients(grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One image and level: grad (Q, M * D), value (h, w, M, D), locations (Q, M, P, 2), weights (Q, M, P)."""
    maps = value.permute(2, 3, 0, 1).to(locations.dtype).contiguous()  # (M, D, h, w)
    grid = locations.mul(2).sub_(1).permute(1, 2, 0, 3)  # (M, P, Q, 2)
    grads = grad.to(maps.dtype).unflatten(1, maps.shape[:2]).permute(1, 2, 0).unsqueeze(2)  # (M, D, 1, Q)
    samples = F.grid_sample(maps, grid, align_corners=False)  # (M, D, P, Q)
    gw = samples.mul_(grads).sum(dim=1)
    del samples
    weighted = grads * weights.permute(1, 2, 0).unsqueeze(1)
    gmaps, ggrid = torch.ops.aten.grid_sampler_2d_backward(weighted, maps, grid, 0, 0, False, [True, True])
    return gmaps.permute(2, 3, 0, 1).flatten(0, 1), ggrid.mul_(2).permute(2, 0, 1, 3), gw.permute(2, 0, 1)
