"""Deformable attention on a GPU by Triton kernels, for any number of channels per head.

A program owns some pairs of a query and a head, which lie side by side in memory, and all channels of these. Gradients
of values are added up by atomic operations. Their order varies, and with it the last bits of float32 sums; under
``torch.use_deterministic_algorithms`` the sums are whole numbers, of 64 bits in units small enough to lose nothing, and
those do not depend on an order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choice import log_once
from .gpu import device_of, missing

__all__ = ["backward", "forward", "forward_joined", "missing", "obstacle"]

_THREADS = 128


def obstacle(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if value.device.type != "cuda":
        return f"they do not take {value.device.type} tensors"
    if value.dtype == torch.float64:
        return "they do not take torch.float64"
    # Offsets inside an image are of 32 bits.
    out = locations.shape[1] * value.shape[2] * value.shape[3]
    if max(value[0].numel(), locations[0].numel(), out) >= 2**31:
        return "they do not take images of 2**31 elements"
    # The second dimension of a grid.
    if len(value) > 65535:
        return f"they do not take {len(value)} images"
    return None


def forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """See :func:`piip.layers.deform_attn`; ``sizes`` are height and width of every level, one after the other."""
    value, locations, weights = (t.contiguous() for t in (value, locations, weights))
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    _launch(_forward_kernel, value, weights.shape, (value, locations, weights, out), sizes)
    return out


def forward_joined(value: Tensor, samples: Tensor, query_grid: Sequence[int], feat_grid: Sequence[int]) -> Tensor:
    """The same from one grid to another; ``samples`` as in :func:`piip.layers.deform_attn.attend_joined`."""
    value, samples = value.contiguous(), samples.contiguous()
    (batch, _, heads, dim), queries = value.shape, samples.shape[1]
    out = value.new_empty(batch, queries, heads * dim)
    shape = batch, queries, heads, 1, samples.shape[2] // (3 * heads)
    _launch(_joined_kernel, value, shape, (value, samples, out), (*query_grid, *feat_grid))
    return out


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``value``, ``locations`` and ``weights``."""
    grad, value, locations, weights = (t.contiguous() for t in (grad, value, locations, weights))
    glocations, gweights = torch.empty_like(locations), torch.empty_like(weights)
    if exact := torch.are_deterministic_algorithms_enabled():
        log_once("deformable attention: gradients of values are summed as whole numbers, to be the same in every run.")
        unit = _unit(grad, weights)
    else:
        unit = torch.ones((), device=value.device, dtype=torch.float64)
    sums = torch.zeros_like(value, dtype=torch.int64 if exact else torch.float32)
    tensors = (grad, value, locations, weights, sums, glocations, gweights, unit)
    _launch(_backward_kernel, value, weights.shape, tensors, sizes, EXACT=exact)
    return (sums * unit if exact else sums).to(value.dtype), glocations, gweights


def _unit(grad: Tensor, weights: Tensor) -> Tensor:
    """The power of two, as a tensor, in which sums of gradients are counted: the largest possible one has 62 bits.

    NaN where something is not finite, so that the gradients are NaN, too.
    """
    samples = math.prod(weights.shape[1:])
    largest = grad.abs().amax().double() * weights.abs().amax().double() * samples
    unit = torch.exp2(largest.clamp(min=1e-200).log2().ceil() - 62)
    return torch.where(largest.isfinite(), unit, torch.nan)


def _launch(
    kernel: triton.JITFunction,
    value: Tensor,
    shape: Sequence[int],
    tensors: tuple[Tensor, ...],
    sizes: Sequence[int],
    **flags,
) -> None:
    (batch, cells, heads, dim), (_, queries, _, levels, points) = value.shape, shape
    channels = triton.next_power_of_2(dim)
    # What a thread loads at once: where widths of heads are known, neighbours come in words of up to 16 bytes. One such
    # word per thread leaves no place to be computed twice there.
    vector = min(dim & -dim, 16 // value.element_size())
    rows = max(1, min(triton.next_power_of_2(queries * heads), _THREADS * vector // channels))
    with device_of(value):
        kernel[(triton.cdiv(queries * heads, rows), batch)](
            *tensors,
            *(cells, queries),
            tuple(sizes),
            HEADS=heads,
            DIM=dim,
            LEVELS=levels,
            POINTS=points,
            ROWS=rows,
            CHANNELS=channels,
            num_warps=_THREADS // 32,
            **flags,
        )


@triton.jit
def _rows(queries, HEADS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Query and head of this program as (rows, 1), channels as (1, channels), and masks."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    row_mask = row < queries * HEADS
    return row, channel, row_mask, row_mask & (channel < DIM)


@triton.jit
def _locate(locations, sample, mask, height, width):
    """The cell before a place and the distance, both by row and column; NaN is far outside, and stays NaN."""
    x = tl.load(locations + 2 * sample, mask=mask, other=0.0)
    y = tl.load(locations + 2 * sample + 1, mask=mask, other=0.0)
    return _split(x, y, height, width)


@triton.jit
def _split(x, y, height, width):
    x, y = x * width - 0.5, y * height - 0.5
    near_x = tl.where(x > -2, tl.where(x < width + 1, x, width + 1), -2.0)
    near_y = tl.where(y > -2, tl.where(y < height + 1, y, height + 1), -2.0)
    left, top = tl.floor(near_x), tl.floor(near_y)
    fx, fy = tl.where(x == x, near_x - left, x), tl.where(y == y, near_y - top, y)
    return left.to(tl.int32), top.to(tl.int32), fx, fy


@triton.jit
def _cell(value, first, row, column, height, width, HEADS: tl.constexpr, DIM: tl.constexpr, offset, mask):
    """Where a cell of every row lies, and whether it is there."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return value + (first + row * width + column) * (HEADS * DIM) + offset, mask & inside


@triton.jit
def _forward_kernel(
    value, locations, weights, out,
    cells, queries, sizes,
    HEADS: tl.constexpr, DIM: tl.constexpr,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row, channel, row_mask, mask = _rows(queries, HEADS, DIM, ROWS, CHANNELS)
    value += image * cells * HEADS * DIM
    locations += image * queries * HEADS * (LEVELS * POINTS * 2)
    weights += image * queries * HEADS * (LEVELS * POINTS)
    offset = row % HEADS * DIM + channel
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    first = 0
    for level in tl.static_range(LEVELS):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for point in tl.range(POINTS, loop_unroll_factor=4):
            sample = (row * LEVELS + level) * POINTS + point
            x, y, fx, fy = _locate(locations, sample, row_mask, height, width)
            weight = tl.load(weights + sample, mask=row_mask, other=0.0)
            total = _add(total, weight, value, first, x, y, fx, fy, height, width, HEADS, DIM, offset, mask)
        first += height * width
    tl.store(out + image * queries * HEADS * DIM + row * DIM + channel, total, mask=mask)


@triton.jit
def _add(
    total, weight, value, first, x, y, fx, fy, height, width, HEADS: tl.constexpr, DIM: tl.constexpr, offset, mask
):
    """Adds a weighted sample."""
    for tap in tl.static_range(4):
        share = (fx if tap % 2 else 1 - fx) * (fy if tap // 2 else 1 - fy)
        cell, there = _cell(value, first, y + tap // 2, x + tap % 2, height, width, HEADS, DIM, offset, mask)
        total += weight * share * tl.load(cell, mask=there, other=0.0).to(tl.float32)
    return total


@triton.jit
def _joined_kernel(
    value, samples, out,
    cells, queries, sizes,
    HEADS: tl.constexpr, DIM: tl.constexpr,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row, channel, row_mask, mask = _rows(queries, HEADS, DIM, ROWS, CHANNELS)
    rows, columns, height, width = sizes[0], sizes[1], sizes[2], sizes[3]
    query, head = row // HEADS, row % HEADS
    value += image * cells * HEADS * DIM
    samples += (image * queries + query) * HEADS * (3 * POINTS)
    offsets = samples + head * (2 * POINTS)
    logits = samples + HEADS * (2 * POINTS) + head * POINTS
    centre_x, centre_y = (query % columns + 0.5) / columns, (query // columns + 0.5) / rows
    largest = tl.full((ROWS, 1), float("-inf"), tl.float32)
    for point in tl.range(POINTS, loop_unroll_factor=4):
        largest = tl.maximum(largest, tl.load(logits + point, mask=row_mask, other=0.0))
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    weights = tl.zeros((ROWS, 1), tl.float32)
    for point in tl.range(POINTS, loop_unroll_factor=4):
        weight = tl.exp(tl.load(logits + point, mask=row_mask, other=0.0) - largest)
        weights += weight
        place_x = centre_x + tl.load(offsets + 2 * point, mask=row_mask, other=0.0) * (1.0 / width)
        place_y = centre_y + tl.load(offsets + 2 * point + 1, mask=row_mask, other=0.0) * (1.0 / height)
        x, y, fx, fy = _split(place_x, place_y, height, width)
        total = _add(total, weight, value, 0, x, y, fx, fy, height, width, HEADS, DIM, head * DIM + channel, mask)
    tl.store(out + image * queries * HEADS * DIM + row * DIM + channel, total / weights, mask=mask)


@triton.jit
def _backward_kernel(
    grad, value, locations, weights, sums, glocations, gweights, unit,
    cells, queries, sizes,
    HEADS: tl.constexpr, DIM: tl.constexpr,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row, channel, row_mask, mask = _rows(queries, HEADS, DIM, ROWS, CHANNELS)
    value += image * cells * HEADS * DIM
    sums += image * cells * HEADS * DIM
    samples = image * queries * HEADS * (LEVELS * POINTS)
    locations += 2 * samples
    glocations += 2 * samples
    weights += samples
    gweights += samples
    offset = row % HEADS * DIM + channel
    own = tl.load(grad + image * queries * HEADS * DIM + row * DIM + channel, mask=mask, other=0.0).to(tl.float32)
    if EXACT:
        units = 1.0 / tl.load(unit)
    first = 0
    for level in tl.static_range(LEVELS):
        height, width = sizes[2 * level], sizes[2 * level + 1]
        for point in tl.range(POINTS, loop_unroll_factor=4):
            sample = (row * LEVELS + level) * POINTS + point
            x, y, fx, fy = _locate(locations, sample, row_mask, height, width)
            weight = tl.load(weights + sample, mask=row_mask, other=0.0)
            by_weight = tl.zeros((ROWS, 1), tl.float32)
            by_x = tl.zeros((ROWS, 1), tl.float32)
            by_y = tl.zeros((ROWS, 1), tl.float32)
            for tap in tl.static_range(4):
                across, down = fx if tap % 2 else 1 - fx, fy if tap // 2 else 1 - fy
                cell, there = _cell(0, first, y + tap // 2, x + tap % 2, height, width, HEADS, DIM, offset, mask)
                given = weight * across * down * own
                if EXACT:
                    given = (given.to(tl.float64) * units).to(tl.int64)
                tl.atomic_add(sums + cell, given, mask=there, sem="relaxed")
                product = own * tl.load(value + cell, mask=there, other=0.0).to(tl.float32)
                product = tl.sum(product, axis=1, keep_dims=True)
                by_weight += across * down * product
                by_x += down * product if tap % 2 else -down * product
                by_y += across * product if tap // 2 else -across * product
            tl.store(gweights + sample, by_weight, mask=row_mask)
            tl.store(glocations + 2 * sample, weight * by_x * width, mask=row_mask)
            tl.store(glocations + 2 * sample + 1, weight * by_y * height, mask=row_mask)
        first += height * width
