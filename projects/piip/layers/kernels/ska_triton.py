"""SKA on a GPU by Triton kernels: any strides of the weights, maps channels-first or channels-last.

A program owns some pixels of some weight channels and all channels of ``x`` that share these, so weights are
loaded once. The gradient of ``x`` gathers what its pixel gave to others, which needs no atomic additions; one kernel
makes both gradients. With the norms of LS convolution, a first kernel computes mean and variance of parts of the map,
which the programs of a second one put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .memory import dense, dense_like, is_channels_last

__all__ = ["backward", "forward", "forward_normed", "missing", "obstacle"]

# Elements of x per program.
_BLOCK = 512
_MAX_GROUPS = 64
# Pixels of a part of the map, whose mean and variance a program computes, and parts at most.
_PART, _MAX_PARTS = 256, 64
_SUMS = {torch.float32: tl.float32, torch.float64: tl.float64}


def missing() -> str | None:
    """Why this machine cannot run the kernels, or None."""
    return None if torch.cuda.is_available() else "there is no CUDA device"


def obstacle(x: Tensor, w: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if x.device.type != "cuda":
        return f"they do not take {x.device.type} tensors"
    if (groups := math.ceil(x.shape[1] / w.shape[1])) > _MAX_GROUPS:
        return f"they do not take {groups} channels that share weights"
    # Offsets inside an image are of 32 bits.
    if max(t[0].numel() for t in (x, w)) >= 2**31:
        return "they do not take images of 2**31 elements"
    return None


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    x, out = dense(x), dense_like(x)
    _launch(_forward_kernel, x, w, (x, w, out), w.stride())
    return out


def forward_normed(x: Tensor, w: Tensor, norms: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """See :func:`piip.layers.normed_ska`."""
    x, out = dense(x), dense_like(x)
    (b, _, height, width), j, sums = x.shape, w.shape[1], torch.promote_types(x.dtype, torch.float32)
    # A power of two, since there are kernels of their own for every size.
    part = _PART * triton.next_power_of_2(triton.cdiv(height * width, _PART * _MAX_PARTS))
    parts = triton.cdiv(height * width, part)
    channels = min(triton.next_power_of_2(j), 32 if w.stride(1) == 1 else 1)
    pixels = min(_BLOCK // channels, part)
    moments = torch.empty(2, b, parts, j, dtype=sums, device=x.device)
    with _device_of(x):
        _moments_kernel[(b * parts, triton.cdiv(j, channels))](
            *(w, *moments),
            *(j, height, width, parts, *w.stride()),
            TAPS=w.shape[2],
            STEPS=part // pixels,
            PIXELS=pixels,
            CHANNELS=channels,
            SUM=_SUMS[sums],
        )
    tensors = x, w, out, *moments, *(t.contiguous() for t in norms)
    _launch(_normed_kernel, x, w, tensors, w.stride(), part, parts, *eps, PARTS=triton.next_power_of_2(parts))
    return out


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    x, gx, gw = dense(x), dense_like(x), torch.empty_like(w)
    _launch(_backward_kernel, x, w, (dense(grad, like=x), x, w, gx, gw), (*w.stride(), *gw.stride()))
    return gx, gw


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _launch(
    kernel: triton.JITFunction,
    x: Tensor,
    w: Tensor,
    tensors: tuple[Tensor, ...],
    strides: tuple[int, ...],
    *numbers: float,
    **constants: int,
) -> None:
    (b, c, height, width), j = x.shape, w.shape[1]
    groups = triton.next_power_of_2(triton.cdiv(c, j))
    # Neighbours in memory belong to one program.
    channels = min(triton.next_power_of_2(j), 32 if is_channels_last(x) else 1)
    pixels = max(1, min(triton.next_power_of_2(height * width), _BLOCK // (groups * channels)))
    blocks = triton.cdiv(height * width, pixels), triton.cdiv(j, channels)
    with _device_of(x):
        kernel[(b * math.prod(blocks),)](
            *tensors,
            *(c, j, height, width),
            *blocks,
            *x.stride(),
            *strides,
            *numbers,
            KS=math.isqrt(w.shape[2]),
            PIXELS=pixels,
            GROUPS=groups,
            CHANNELS=channels,
            SUM=_SUMS[torch.promote_types(x.dtype, torch.float32)],
            **constants,
        )


@triton.jit
def _tile(
    c, j, height, width, pixel_blocks, j_blocks, PIXELS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Image, rows, columns, channels and weight channels of this program as (pixels, groups, channels), and masks."""
    program = tl.program_id(0)
    pixel = program % pixel_blocks * PIXELS + tl.arange(0, PIXELS)[:, None, None]
    jj = program // pixel_blocks % j_blocks * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    cc = tl.arange(0, GROUPS)[None, :, None] * j + jj
    image = (program // pixel_blocks // j_blocks).to(tl.int64)
    weight_mask = (pixel < height * width) & (jj < j)
    return image, pixel // width, pixel % width, cc, jj, weight_mask & (cc < c), weight_mask


@triton.jit
def _product(a, b, SUM: tl.constexpr):
    """In the dtype of the sums, after float16 rounded it; what float16 is not is multiplied there."""
    if a.dtype == tl.float16:
        return (a * b).to(SUM)
    return a.to(SUM) * b.to(SUM)


@triton.jit
def _forward_kernel(
    x, w, out,
    c, j, height, width, pixel_blocks, j_blocks,
    x_b, x_c, x_y, x_x,
    w_b, w_j, w_k, w_y, w_x,
    KS: tl.constexpr, PIXELS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    image, py, px, cc, jj, mask, weight_mask = _tile(
        c, j, height, width, pixel_blocks, j_blocks, PIXELS, GROUPS, CHANNELS
    )
    x += image * x_b + cc * x_c
    w += image * w_b + jj * w_j + py * w_y + px * w_x
    total = tl.zeros((PIXELS, GROUPS, CHANNELS), SUM)
    for k in tl.static_range(KS * KS):
        qy, qx = py + (k // KS - KS // 2), px + (k % KS - KS // 2)
        inside = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
        value = tl.load(x + qy * x_y + qx * x_x, mask=mask & inside, other=0.0)
        weight = tl.load(w + k * w_k, mask=weight_mask, other=0.0)
        total += _product(value, weight, SUM)
    tl.store(out + image * x_b + cc * x_c + py * x_y + px * x_x, total, mask=mask)


@triton.jit
def _moments_kernel(
    w, mean, squares,
    j, height, width, parts, w_b, w_j, w_k, w_y, w_x,
    TAPS: tl.constexpr, STEPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Means and sums of squared distances from them, of a part of the pixels and all taps."""
    first, image = tl.program_id(0) % parts * (STEPS * PIXELS), (tl.program_id(0) // parts).to(tl.int64)
    last = tl.minimum(first + STEPS * PIXELS, height * width)
    jj = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    w += image * w_b + jj * w_j
    pixels = first + tl.arange(0, PIXELS)[:, None]
    total = tl.zeros((PIXELS, CHANNELS), SUM)
    for step in range(STEPS):
        pixel = pixels + step * PIXELS
        for k in tl.static_range(TAPS):
            here = w + k * w_k + pixel // width * w_y + pixel % width * w_x
            total += tl.load(here, mask=(pixel < last) & (jj < j), other=0.0).to(SUM)
    centre = tl.sum(total, axis=0, keep_dims=True) / ((last - first) * TAPS)
    total = tl.zeros((PIXELS, CHANNELS), SUM)
    for step in range(STEPS):
        pixel = pixels + step * PIXELS
        mask = (pixel < last) & (jj < j)
        for k in tl.static_range(TAPS):
            here = w + k * w_k + pixel // width * w_y + pixel % width * w_x
            distance = tl.load(here, mask=mask, other=0.0).to(SUM) - centre
            total += tl.where(mask, distance * distance, 0.0)
    out = tl.program_id(0).to(tl.int64) * j + jj
    tl.store(mean + out, centre, mask=jj < j)
    tl.store(squares + out, tl.sum(total, axis=0, keep_dims=True), mask=jj < j)


@triton.jit
def _normed_kernel(
    x, w, out, mean, squares, gain, bias, batch_weight, batch_bias, batch_mean, batch_var,
    c, j, height, width, pixel_blocks, j_blocks,
    x_b, x_c, x_y, x_x,
    w_b, w_j, w_k, w_y, w_x,
    part, parts, eps, batch_eps,
    KS: tl.constexpr, PIXELS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    image, py, px, cc, jj, mask, weight_mask = _tile(
        c, j, height, width, pixel_blocks, j_blocks, PIXELS, GROUPS, CHANNELS
    )
    # Moments of the whole map, by Chan's formula.
    index = tl.arange(0, PARTS)[:, None, None]
    taken = (index < parts) & (jj < j)
    moments = (image * parts + index) * j + jj
    counts = tl.where(taken, KS * KS * tl.minimum(part, height * width - index * part), 0).to(SUM)
    means = tl.load(mean + moments, mask=taken, other=0.0)
    count = KS * KS * height * width
    centre = tl.sum(counts * means, axis=0, keep_dims=True) / count
    distances = tl.load(squares + moments, mask=taken, other=0.0) + counts * (means - centre) * (means - centre)
    factor = 1 / tl.sqrt(tl.sum(distances, axis=0, keep_dims=True) / count + eps)
    x += image * x_b + cc * x_c
    w += image * w_b + jj * w_j + py * w_y + px * w_x
    own = tl.zeros((PIXELS, GROUPS, CHANNELS), SUM)
    total = tl.zeros((PIXELS, GROUPS, CHANNELS), SUM)
    for k in tl.static_range(KS * KS):
        qy, qx = py + (k // KS - KS // 2), px + (k % KS - KS // 2)
        inside = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
        value = tl.load(x + qy * x_y + qx * x_x, mask=mask & inside, other=0.0).to(SUM)
        if k == KS * KS // 2:
            own = value
        weight = (tl.load(w + k * w_k, mask=weight_mask, other=0.0).to(SUM) - centre) * factor
        weight *= tl.load(gain + jj * (KS * KS) + k, mask=jj < j, other=0.0).to(SUM)
        weight += tl.load(bias + jj * (KS * KS) + k, mask=jj < j, other=0.0).to(SUM)
        total += value * weight
    total -= tl.load(batch_mean + cc, mask=cc < c, other=0.0).to(SUM)
    total /= tl.sqrt(tl.load(batch_var + cc, mask=cc < c, other=1.0).to(SUM) + batch_eps)
    total *= tl.load(batch_weight + cc, mask=cc < c, other=0.0).to(SUM)
    total += tl.load(batch_bias + cc, mask=cc < c, other=0.0).to(SUM)
    tl.store(out + image * x_b + cc * x_c + py * x_y + px * x_x, own + total, mask=mask)


@triton.jit
def _backward_kernel(
    grad, x, w, gx, gw,
    c, j, height, width, pixel_blocks, j_blocks,
    x_b, x_c, x_y, x_x,
    w_b, w_j, w_k, w_y, w_x,
    gw_b, gw_j, gw_k, gw_y, gw_x,
    KS: tl.constexpr, PIXELS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    image, py, px, cc, jj, mask, weight_mask = _tile(
        c, j, height, width, pixel_blocks, j_blocks, PIXELS, GROUPS, CHANNELS
    )
    maps = image * x_b + cc * x_c
    here = maps + py * x_y + px * x_x
    w += image * w_b + jj * w_j
    gw += image * gw_b + jj * gw_j + py * gw_y + px * gw_x
    own = tl.load(grad + here, mask=mask, other=0.0)
    total = tl.zeros((PIXELS, GROUPS, CHANNELS), SUM)
    for k in tl.static_range(KS * KS):
        dy, dx = k // KS - KS // 2, k % KS - KS // 2
        # The weight: what this pixel took by tap k from its neighbour, over all channels that share the weight.
        qy, qx = py + dy, px + dx
        inside = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
        value = tl.load(x + maps + qy * x_y + qx * x_x, mask=mask & inside, other=0.0)
        shared = tl.sum(_product(value, own, SUM), axis=1, keep_dims=True)
        tl.store(gw + k * gw_k, shared, mask=weight_mask)
        # The map: what the opposite neighbour took by tap k from this pixel.
        qy, qx = py - dy, px - dx
        inside = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
        value = tl.load(grad + maps + qy * x_y + qx * x_x, mask=mask & inside, other=0.0)
        weight = tl.load(w + k * w_k + qy * w_y + qx * w_x, mask=weight_mask & inside, other=0.0)
        total += _product(value, weight, SUM)
    tl.store(gx + here, total, mask=mask)
