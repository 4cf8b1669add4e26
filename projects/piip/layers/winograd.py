"""3x3 convolutions on a CPU with a quarter of the multiplications, for inference."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from .cpu_conv import CPUConv2d, is_plain
from .cpu_half import lacks_instructions

__all__ = ["WinogradConv2d"]

# 4x4 outputs are computed at once, from 6x6 inputs: as polynomials, by their values at six points. With these five (and
# infinity) results are rounded by a fourth of what the usual 0, 1, -1, 2, -2 give.
_TILE, _POINTS = 4, (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_AT_ONCE = 128  # tiles: enough for fast products, few enough for the caches
_WORTH_IT = 32  # tiles


class WinogradConv2d(CPUConv2d):
    """A 3x3 convolution of stride 1 with a quarter of the multiplications, which are in float32.

    So parameters and maps are float32, too, or half precision that the CPU has no instructions for.

    The maps are cut into tiles, tiles and kernels are transformed, multiplied and transformed back: 36 instead of 144
    multiplications for 16 outputs, and nearly all of them in large matrix products. The transformed kernels take four
    times the memory of the kernels, beside these. They are no part of the state dict, and are made anew when one is
    loaded and when the module moves or changes its type; the kernels must not change in other ways.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv:1509.09308), Sec. 4, with the
    idea of Barabasz et al. (arXiv:1803.10986) for the points: fractions near one are rounded less.

    Args:
        conv: a convolution for which :meth:`suits` is true.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W), channels last in memory
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self._prepare()

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether it is such a convolution, of PyTorch or Detectron2, on a CPU, and wide enough to become faster."""
        if type(layer) not in (nn.Conv2d, Conv2d) or not is_plain(layer) or not _in_float32(layer.weight.dtype):
            return False
        if layer.groups != 1 or min(layer.in_channels, layer.out_channels) < 192 or layer.padding_mode != "zeros":
            return False
        return layer.kernel_size == (3, 3) and layer.stride == layer.padding == layer.dilation == (1, 1)

    def fits(self, x: Tensor) -> bool:
        return _in_float32(x.dtype) and self.prepared is not None and super().fits(x)

    def product(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return _convolve(x.float(), self.weight.float(), self.prepared, bias).to(x.dtype)

    def _prepare(self) -> None:
        self.prepared: Tensor | None = None
        if not self.weight.is_cpu:
            return
        columns = torch.from_numpy(_transforms()[1]) @ self.weight.detach().double().permute(2, 3, 1, 0).flatten(
            0, 1
        ).flatten(1)
        # No buffer: it would go to GPUs and into exported files, where nothing uses it.
        self.prepared = columns.float().view(-1, self.in_channels, self.out_channels)

    def _apply(self, *args: object, **kwargs: object) -> nn.Module:
        super()._apply(*args, **kwargs)
        self._prepare()
        return self

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._prepare()


def _in_float32(dtype: torch.dtype) -> bool:
    """Whether a CPU should multiply numbers of this type in float32."""
    return dtype == torch.float32 or lacks_instructions(dtype)


@cache
def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices for tiles (36, 36), kernels (36, 9) and products (16, 36); both directions of a tile in one."""

    def values(degree: int) -> np.ndarray:
        """Values of polynomials at the points; the one at infinity is the leading coefficient."""
        return np.vstack([np.vander(_POINTS, degree, increasing=True), np.eye(degree)[-1]])

    tile, kernel, product = np.linalg.inv(values(_TILE + 2)).T, values(3), values(_TILE).T
    # Powers of two go from the kernels to the tiles for numbers of like size everywhere.
    scale = 2 ** np.log2(np.abs(tile).max(1, keepdims=True)).round()
    return tuple(np.kron(m, m) for m in (tile / scale, kernel * scale, product))


@torch.library.custom_op("piip::winograd_conv2d", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
    (b, c, h, w), out = x.shape, weight.shape[0]
    rows, columns = -(-h // _TILE), -(-w // _TILE)
    if b * rows * columns < _WORTH_IT:
        return F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)
    tile, product = (torch.from_numpy(_transforms()[index]).to(x) for index in (0, 2))
    y = x.new_empty(b, rows, _TILE, columns, _TILE, out)
    images, step = max(1, _AT_ONCE // (rows * columns)), max(1, _AT_ONCE // columns)
    for first in range(0, b, images):
        some = x[first : first + images].permute(0, 2, 3, 1)
        for start in range(0, rows, step):
            top, bottom = start * _TILE - 1, min(start + step, rows) * _TILE + 1
            padding = (0, 0, 1, columns * _TILE + 1 - w, max(0, -top), max(0, bottom - h))
            strip = F.pad(some[:, max(0, top) : bottom], padding)
            strip = strip.unfold(1, 6, _TILE).unfold(2, 6, _TILE).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
            strip = (tile @ strip).view(36, -1, c) @ prepared
            strip = (product @ strip.flatten(1)).view(_TILE, _TILE, len(some), -1, columns, out)
            strip, done = strip.permute(2, 3, 0, 4, 1, 5), y[first : first + images, start : start + step]
            done.copy_(strip) if bias is None else torch.add(strip, bias, out=done)
    y = y.view(b, rows * _TILE, columns * _TILE, out)[:, :h, :w]
    return y.contiguous().permute(0, 3, 1, 2)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
    b, _, h, w = x.shape
    return x.new_empty(b, h, w, weight.shape[0]).permute(0, 3, 1, 2)


@register_flop_formula(torch.ops.piip.winograd_conv2d)
def _flops(x_shape: torch.Size, w_shape: torch.Size, *args, **kwargs) -> int:
    """As of a convolution: what is computed, not how."""
    return 2 * x_shape[0] * math.prod(x_shape[2:]) * math.prod(w_shape)
