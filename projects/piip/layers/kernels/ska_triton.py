"""SKA on a GPU by Triton kernels: any strides of the weights, maps channels-first or channels-last.

What limits a GPU here is instructions. A thread owns a strip of pixels, one below the other, of a weight channel: its
weights stay in registers for all channels of ``x`` that share them, and what it reads of ``x`` serves all its pixels.
Weights of neighbours outside of the map are zeros, so that the nearest pixel may be read in their place, without masks.
The gradient of ``x`` gathers what its pixel gave to others, which needs no atomic additions; one kernel makes both
gradients, and sums over channels stay in a thread, too.

With the norms of LS convolution, a first kernel computes mean and variance of the weights in parts of the map, which
the programs of the second one put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gpu import device_of, missing
from .memory import dense, dense_like, is_channels_last

__all__ = ["backward", "forward", "forward_normed", "missing", "obstacle"]

# Threads of a program, and neighbours in memory that a thread holds of channels-last maps.
_THREADS, _VECTOR = 128, 2
_MAX_GROUPS, _MAX_TAPS = 64, 25
# Pixels of a part of the map, whose mean and variance a program computes, and parts at most.
_PART, _MAX_PARTS = 256, 64
_SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


def obstacle(x: Tensor, w: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if x.device.type != "cuda":
        return f"they do not take {x.device.type} tensors"
    if (groups := math.ceil(x.shape[1] / w.shape[1])) > _MAX_GROUPS:
        return f"they do not take {groups} channels that share weights"
    if w.shape[2] > _MAX_TAPS:
        return f"they do not take {w.shape[2]} taps"  # all are in registers
    # Offsets inside an image are of 32 bits.
    if max(_extent(t[0]) for t in (x, w)) >= 2**31:
        return "they do not take images of 2**31 elements"
    return None


def _extent(t: Tensor) -> int:
    """Elements of memory from the first to the last one of a tensor, but at least as many as it has."""
    return max(t.numel(), 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)))


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    x, out = dense(x), dense_like(x)
    _launch(_forward_kernel, x, w, (x, w, out, None), w.stride())
    return out


def forward_normed(x: Tensor, w: Tensor, norms: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """See :func:`piip.layers.normed_ska`."""
    x, out = dense(x), dense_like(x)
    (b, _, height, width), j, sums = x.shape, w.shape[1], torch.promote_types(x.dtype, torch.float32)
    # A power of two, since there are kernels of their own for every size.
    part = _PART * triton.next_power_of_2(triton.cdiv(height * width, _PART * _MAX_PARTS))
    part = min(part, triton.next_power_of_2(height * width))
    parts = triton.cdiv(height * width, part)
    # Neighbours in memory belong to one program, and small maps of several weight channels do.
    pixels = min(part, 4 * _THREADS)
    channels = min(triton.next_power_of_2(j), 32 if w.stride(1) == 1 else 4 * _THREADS // pixels)
    pixels = min(pixels, 4 * _THREADS // channels)
    moments = torch.empty(2, b, parts, j, dtype=sums, device=x.device)
    with device_of(x):
        _moments_kernel[(b * parts, triton.cdiv(j, channels))](
            *(w, *moments),
            *(j, height, width, parts, *w.stride()),
            DENSE=w.stride(3) == width * w.stride(4),
            TAPS=w.shape[2],
            STEPS=part // pixels,
            PIXELS=pixels,
            CHANNELS=channels,
            SUM=_SUMS[sums],
            num_warps=_THREADS // 32,
        )
    given = *moments, *(t.contiguous() for t in norms), part, parts, *eps
    _launch(_forward_kernel, x, w, (x, w, out, given), w.stride(), PARTS=triton.next_power_of_2(parts))
    return out


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    x, gx, gw = dense(x), dense_like(x), torch.empty_like(w)
    _launch(_backward_kernel, x, w, (dense(grad, like=x), x, w, gx, gw), (*w.stride(), *gw.stride()))
    return gx, gw


def _launch(
    kernel: triton.JITFunction,
    x: Tensor,
    w: Tensor,
    tensors: tuple[Tensor | tuple | None, ...],
    strides: tuple[int, ...],
    **constants: int,
) -> None:
    (b, c, height, width), (j, taps) = x.shape, w.shape[1:3]
    last = is_channels_last(x)
    rows = (2 if last else 4) if taps == 9 else 1
    places = triton.next_power_of_2(triton.cdiv(height, rows) * width)
    # Neighbours in memory belong to one program; blocks of weight channels that fill their width waste nothing.
    if last:
        channels = min(triton.next_power_of_2(j), 32, max(8, j & -j))
        pixels = min(places, _THREADS * _VECTOR // channels)
    else:
        pixels = min(places, 32)
        channels = min(triton.next_power_of_2(j), _THREADS // pixels)
    blocks = triton.cdiv(triton.cdiv(height, rows) * width, pixels), triton.cdiv(j, channels)
    with device_of(x):
        kernel[(b * math.prod(blocks),)](
            *tensors,
            *(c, height, width),
            *blocks,
            *(x.stride(0), x.stride(1), x.stride(3)),
            *strides,
            J=j,
            GROUPS=triton.cdiv(c, j),
            EVEN=c % j == 0 and j % channels == 0,
            KS=math.isqrt(taps),
            ROWS=rows,
            PIXELS=pixels,
            CHANNELS=channels,
            SUM=_SUMS[torch.promote_types(x.dtype, torch.float32)],
            num_warps=_THREADS // 32,
            **constants,
        )


@triton.jit
def _tile(
    height, width, pixel_blocks, j_blocks,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Image, upper row and column of strips as (1, pixels), and weight channels as (channels, 1) of this program."""
    program = tl.program_id(0)
    place = program % pixel_blocks * PIXELS + tl.arange(0, PIXELS)[None, :]
    jj = program // pixel_blocks % j_blocks * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    image = (program // pixel_blocks // j_blocks).to(tl.int64)
    return image, place // width * ROWS, place % width, jj


@triton.jit
def _around(first, top, column, height, width, stride, KS: tl.constexpr, ROWS: tl.constexpr):
    """Offsets of a strip's neighbourhood, row by row; outside of the map that of the nearest pixel."""
    offsets = ()
    for n in tl.static_range((ROWS + KS - 1) * KS):
        y = tl.minimum(tl.maximum(top + (n // KS - KS // 2), 0), height - 1)
        x = tl.minimum(tl.maximum(column + (n % KS - KS // 2), 0), width - 1)
        offsets = offsets + (first + (y * width + x) * stride,)
    return offsets


@triton.jit
def _load_all(maps, offsets, shift, mask, N: tl.constexpr, EVEN: tl.constexpr):
    values = ()
    for n in tl.static_range(N):
        if EVEN:
            values = values + (tl.load(maps + (offsets[n] + shift)),)
        else:
            values = values + (tl.load(maps + (offsets[n] + shift), mask=mask, other=0.0),)
    return values


@triton.jit
def _inside(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _product(a, b, SUM: tl.constexpr):
    """In the dtype of the sums, after float16 rounded it; what float16 is not is multiplied there."""
    if a.dtype == tl.float16:
        return (a * b).to(SUM)
    return a.to(SUM) * b.to(SUM)


@triton.jit
def _moments(norms, image, jj, pixels, J: tl.constexpr, TAPS: tl.constexpr, PARTS: tl.constexpr, SUM: tl.constexpr):
    """Mean, and one over the deviation, of weight channels over the whole map, by Chan's formula: (channels, 1)."""
    part, parts = norms[8], norms[9]
    index = tl.arange(0, PARTS)[None, :]
    mask = (index < parts) & (jj < J)
    there = (image * parts + index) * J + jj
    counts = tl.where(mask, TAPS * tl.minimum(part, pixels - index * part), 0).to(SUM)
    means = tl.load(norms[0] + there, mask=mask, other=0.0)
    centre = tl.sum(counts * means, axis=1, keep_dims=True) / (TAPS * pixels)
    squares = tl.load(norms[1] + there, mask=mask, other=0.0) + counts * (means - centre) * (means - centre)
    return centre, 1 / tl.sqrt(tl.sum(squares, axis=1, keep_dims=True) / (TAPS * pixels) + norms[10])


@triton.jit
def _batch_norm(norms, channel, mask, SUM: tl.constexpr):
    """By what sums of channels are scaled and shifted."""
    scale = tl.load(norms[4] + channel, mask=mask, other=0.0).to(SUM)
    scale *= tl.rsqrt(tl.load(norms[7] + channel, mask=mask, other=1.0).to(SUM) + norms[11])
    mean = tl.load(norms[6] + channel, mask=mask, other=0.0).to(SUM)
    return scale, tl.load(norms[5] + channel, mask=mask, other=0.0).to(SUM) - mean * scale


@triton.jit
def _moments_kernel(
    w, mean, squares,
    j, height, width, parts, w_b, w_j, w_k, w_y, w_x,
    DENSE: tl.constexpr, TAPS: tl.constexpr, STEPS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Means and sums of squared distances from them, of a part of the pixels and all taps."""
    first, image = tl.program_id(0) % parts * (STEPS * PIXELS), (tl.program_id(0) // parts).to(tl.int64)
    last = tl.minimum(first + STEPS * PIXELS, height * width)
    jj = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    w += image * w_b
    total = tl.zeros((PIXELS, CHANNELS), SUM)
    for step in range(STEPS):
        pixel = first + step * PIXELS + tl.arange(0, PIXELS)[:, None]
        here = jj * w_j + (pixel * w_x if DENSE else pixel // width * w_y + pixel % width * w_x)
        for tap in tl.static_range(TAPS):
            total += tl.load(w + (here + tap * w_k), mask=(pixel < last) & (jj < j), other=0.0).to(SUM)
    centre = tl.sum(total, axis=0, keep_dims=True) / ((last - first) * TAPS)
    total = tl.zeros((PIXELS, CHANNELS), SUM)
    for step in range(STEPS):
        pixel = first + step * PIXELS + tl.arange(0, PIXELS)[:, None]
        here = jj * w_j + (pixel * w_x if DENSE else pixel // width * w_y + pixel % width * w_x)
        mask = (pixel < last) & (jj < j)
        for tap in tl.static_range(TAPS):
            distance = tl.where(mask, tl.load(w + (here + tap * w_k), mask=mask, other=0.0).to(SUM) - centre, 0.0)
            total += distance * distance
    out = tl.program_id(0).to(tl.int64) * j + jj
    tl.store(mean + out, centre, mask=jj < j)
    tl.store(squares + out, tl.sum(total, axis=0, keep_dims=True), mask=jj < j)


@triton.jit
def _forward_kernel(
    x, w, out, norms,
    c, height, width, pixel_blocks, j_blocks,
    x_b, x_c, x_x,
    w_b, w_j, w_k, w_y, w_x,
    J: tl.constexpr, GROUPS: tl.constexpr, EVEN: tl.constexpr, KS: tl.constexpr,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr, PARTS: tl.constexpr = 1,
):  # fmt: skip
    image, top, column, jj = _tile(height, width, pixel_blocks, j_blocks, ROWS, PIXELS, CHANNELS)
    offsets = _around(jj * x_c, top, column, height, width, x_x, KS, ROWS)
    here = jj * x_c + (top * width + column) * x_x
    x += image * x_b
    out += image * x_b
    w += image * w_b + jj * w_j + top * w_y + column * w_x
    if norms is not None:
        centre, factor = _moments(norms, image, jj, height * width, J, KS * KS, PARTS, SUM)
    weights = ()
    for n in tl.static_range(ROWS * KS * KS):
        y, tap = n // (KS * KS), n % (KS * KS)
        mask = _inside(top + y + (tap // KS - KS // 2), column + (tap % KS - KS // 2), height, width)
        mask = mask & (top + y < height) & (jj < J)
        weight = tl.load(w + (tap * w_k + y * w_y), mask=mask, other=0.0)
        if norms is not None:
            gain = tl.load(norms[2] + (jj * (KS * KS) + tap), mask=jj < J, other=0.0).to(SUM)
            bias = tl.load(norms[3] + (jj * (KS * KS) + tap), mask=jj < J, other=0.0).to(SUM)
            weight = tl.where(mask, (weight.to(SUM) - centre) * (factor * gain) + bias, 0.0)
        weights = weights + (weight,)
    for group in range(GROUPS):
        shift = group * (J * x_c)
        there = (jj < J) & (group * J + jj < c)
        values = _load_all(x, offsets, shift, there, (ROWS + KS - 1) * KS, EVEN)
        if norms is not None:
            scale, bias = _batch_norm(norms, group * J + jj, there, SUM)
        for row in tl.static_range(ROWS):
            total = tl.zeros((CHANNELS, PIXELS), SUM)
            for k in tl.static_range(KS * KS):
                total += _product(values[row * KS + k], weights[row * KS * KS + k], SUM)
            if norms is not None:
                total = values[(row + KS // 2) * KS + KS // 2].to(SUM) + (total * scale + bias)
            tl.store(out + (here + shift + row * width * x_x), total, mask=there & (top + row < height))


@triton.jit
def _backward_kernel(
    grad, x, w, gx, gw,
    c, height, width, pixel_blocks, j_blocks,
    x_b, x_c, x_x,
    w_b, w_j, w_k, w_y, w_x,
    gw_b, gw_j, gw_k, gw_y, gw_x,
    J: tl.constexpr, GROUPS: tl.constexpr, EVEN: tl.constexpr, KS: tl.constexpr,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    image, top, column, jj = _tile(height, width, pixel_blocks, j_blocks, ROWS, PIXELS, CHANNELS)
    offsets = _around(jj * x_c, top, column, height, width, x_x, KS, ROWS)
    here = jj * x_c + (top * width + column) * x_x
    grad += image * x_b
    x += image * x_b
    gx += image * x_b
    w += image * w_b + jj * w_j + top * w_y + column * w_x
    gw += image * gw_b + jj * gw_j + top * gw_y + column * gw_x
    # Where neighbour `near` lies is where the opposite tap of that neighbour took this pixel.
    weights = ()
    sums = ()
    for n in tl.static_range(ROWS * KS * KS):
        y, near = n // (KS * KS), n % (KS * KS)
        dy, dx = near // KS - KS // 2, near % KS - KS // 2
        mask = _inside(top + y + dy, column + dx, height, width) & (top + y < height) & (jj < J)
        weight = tl.load(w + ((KS * KS - 1 - near) * w_k + (y + dy) * w_y + dx * w_x), mask=mask, other=0.0)
        weights = weights + (weight,)
        sums = sums + (tl.zeros((CHANNELS, PIXELS), SUM),)
    for group in range(GROUPS):
        shift = group * (J * x_c)
        there = (jj < J) & (group * J + jj < c)
        values = _load_all(x, offsets, shift, there, (ROWS + KS - 1) * KS, EVEN)
        grads = _load_all(grad, offsets, shift, there, (ROWS + KS - 1) * KS, EVEN)
        more = ()
        for row in tl.static_range(ROWS):
            total = tl.zeros((CHANNELS, PIXELS), SUM)
            for k in tl.static_range(KS * KS):
                total += _product(grads[row * KS + k], weights[row * KS * KS + k], SUM)
                shared = _product(values[row * KS + k], grads[(row + KS // 2) * KS + KS // 2], SUM)
                more = more + (sums[row * KS * KS + k] + shared,)
            tl.store(gx + (here + shift + row * width * x_x), total, mask=there & (top + row < height))
        sums = more
    for n in tl.static_range(ROWS * KS * KS):
        y, tap = n // (KS * KS), n % (KS * KS)
        inside = _inside(top + y + (tap // KS - KS // 2), column + (tap % KS - KS // 2), height, width)
        tl.store(gw + (tap * gw_k + y * gw_y), tl.where(inside, sums[n], 0.0), mask=(top + y < height) & (jj < J))
