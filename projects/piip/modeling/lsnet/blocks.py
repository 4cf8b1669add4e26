"""What LSNet consists of: units of convolution and norm, the two token mixers, attention.

Parameters have the names of the released weights. Source: LSNet (arXiv:2503.23135), Sec. 3; released models.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers import normed_ska, ska
from ...layers.cpu_half import lacks_instructions
from ...layers.kept import Kept
from ...layers.kernels.memory import is_channels_last
from .position_bias import RESIZES, position_bias

__all__ = ["Attention", "Block", "ConvNorm", "FusedLSConv", "LSConv", "RepDW", "Residual"]

_KEY_DIM = 16
_SMALL_KERNEL, _LARGE_KERNEL = 3, 7
_KEPT_SIZES = 16
_SHARING = 8  # channels with the same weights in LS convolution


class _ChannelScale(nn.Conv2d):
    """A depthwise 1x1 convolution of stride 1; on a CPU it is a product, which takes a tenth of the time there."""

    def forward(self, x: Tensor) -> Tensor:
        # Folding a norm adds a bias, and counters trace: to them it stays what it is.
        if x.device.type != "cpu" or self.bias is not None or torch.jit.is_tracing():
            return super().forward(x)
        return x * self.weight.view(-1, 1, 1).to(x.dtype)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; the kernel is odd and the map padded to keep its size.

    Args:
        zero_init: whether the norm's weight starts at zero, which makes a residual branch start as nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        zero_init: bool = False,
    ) -> None:
        scales = kernel_size == stride == 1 and in_channels == groups == out_channels
        kind = _ChannelScale if scales else nn.Conv2d
        conv = kind(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(out_channels)
        if zero_init:
            nn.init.zeros_(norm.weight)
        super().__init__(OrderedDict(c=conv, bn=norm))


class RepDW(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions and the input itself, added: one depthwise convolution in inference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, 3, groups=channels)
        self.conv1 = ConvNorm(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x


class LargeKernelPerception(nn.Module):
    """The weights of LS convolution, from a large neighbourhood: (B, C, H, W) -> (B, C / 8, 9, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden, taps = channels // 2, _SMALL_KERNEL**2
        self.groups = channels // _SHARING
        self.cv1 = ConvNorm(channels, hidden)
        self.cv2 = ConvNorm(hidden, hidden, _LARGE_KERNEL, groups=hidden)
        self.cv3 = ConvNorm(hidden, hidden)
        self.cv4 = nn.Conv2d(hidden, taps * self.groups, 1)
        self.norm = nn.GroupNorm(self.groups, taps * self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv4(self.hidden(x))
        if x.is_cpu:
            x = x.contiguous()  # GroupNorm takes ten times as long channels last
        return self.norm(x).unflatten(1, (self.groups, -1))

    def hidden(self, x: Tensor) -> Tensor:
        """What the last convolution is given, (B, C / 2, H, W)."""
        x = self.cv2(F.relu(self.cv1(x), inplace=True))
        return F.relu(self.cv3(x), inplace=True)


class LSConv(nn.Module):
    """LS convolution: a large neighbourhood decides with which weights a small one is aggregated."""

    def __init__(self, channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if channels % _SHARING:
            raise ConfigError(f"the width {channels} must be a multiple of {_SHARING} for LS convolution.")
        self.lkp = LargeKernelPerception(channels)
        self.bn = nn.BatchNorm2d(channels)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.bn(ska(x, self.lkp(x))))


class FusedLSConv(nn.Module):
    """LS convolution for inference: norms, aggregation and residual connection in one operator.

    Args:
        conv: an LS convolution in evaluation mode, whose parts it takes over.
    """

    def __init__(self, conv: LSConv) -> None:
        super().__init__()
        self.lkp, self.bn, self.kept = conv.lkp, conv.bn, Kept(2)

    def forward(self, x: Tensor) -> Tensor:
        return normed_ska(x, self._weights(self.lkp.hidden(x)), self.lkp.norm, self.bn)

    def _weights(self, hidden: Tensor) -> Tensor:
        """(B, C / 2, H, W) -> (B, C / 8, 9, H, W), before their norm."""
        last, groups = self.lkp.cv4, self.lkp.groups
        if not is_channels_last(hidden) or (hidden.is_cpu and lacks_instructions(hidden.dtype)):
            return last(hidden).unflatten(1, (groups, -1))
        # All weight channels of a tap side by side, as the operator takes them.
        weight, bias = (self._taps_first(name, getattr(last, name)) for name in ("weight", "bias"))
        w = F.linear(hidden.permute(0, 2, 3, 1), weight.flatten(1), bias)
        return w.unflatten(3, (-1, groups)).permute(0, 4, 3, 1, 2)

    def _taps_first(self, name: str, parameter: Tensor) -> Tensor:
        def reordered() -> Tensor:
            return parameter.unflatten(0, (self.lkp.groups, -1)).transpose(0, 1).flatten(0, 1)

        return self.kept(name, parameter.device, reordered, of=parameter)


class Attention(nn.Module):
    """Multi-head self-attention over the positions of a map, with a learned bias per offset between two of them.

    Args:
        channels: width; a multiple of the number of heads.
        num_heads: heads, with keys of 16 numbers each.
        resolution: side of the square grid that the table of biases is for.
        bias_resize: how the biases are fitted to another grid, see :func:`position_bias`.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int, num_heads: int, resolution: int, bias_resize: str) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ConfigError(f"the width {channels} of the last stage is not a multiple of num_heads={num_heads}.")
        if bias_resize not in RESIZES:
            raise ConfigError(f"bias_resize={bias_resize!r} is unknown; use one of {', '.join(RESIZES)}.")
        self.num_heads, self.resolution, self.bias_resize = num_heads, resolution, bias_resize
        self.widths = (num_heads * _KEY_DIM, num_heads * _KEY_DIM, channels)
        self.qkv = ConvNorm(channels, sum(self.widths))
        self.dw = ConvNorm(self.widths[0], self.widths[0], 3, groups=self.widths[0])
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(channels, channels, zero_init=True))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, resolution**2))
        self.kept = Kept(_KEPT_SIZES)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        q, k, v = self.qkv(x).split(self.widths, dim=1)
        q, k, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3) for t in (self.dw(q), k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(grid).to(q.dtype))
        return self.proj(out.transpose(2, 3).flatten(1, 2).unflatten(2, grid))

    def _bias(self, grid: tuple[int, int]) -> Tensor:
        """(heads, N, N); of frozen tables, as after fusing, the latest are kept."""
        table = self.attention_biases

        def resized() -> Tensor:
            return position_bias(table.unflatten(1, (self.resolution, -1)), grid, self.bias_resize)

        return self.kept(grid, table.device, resized, of=table)


class Residual(nn.Module):
    """``x + m(x)``, with stochastic depth."""

    def __init__(self, module: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.m = module
        self.drop_path = _drop_path(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.m(x))


class Block(nn.Module):
    """A token mixer and a feed-forward network of two layers, twice as wide inside.

    Args:
        mixer: mixes positions; the residual connection is its own.
        channels: width.
        squeeze: whether the channels are gated by squeeze-and-excitation after the mixer.
        drop_path: rate of stochastic depth of the feed-forward network.
    """

    def __init__(self, mixer: nn.Module, channels: int, squeeze: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.se = SqueezeExcite(channels, rd_ratio=0.25) if squeeze else nn.Identity()
        layers = OrderedDict(
            pw1=ConvNorm(channels, 2 * channels),
            act=nn.ReLU(inplace=True),
            pw2=ConvNorm(2 * channels, channels, zero_init=True),
        )
        self.ffn = Residual(nn.Sequential(layers), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.se(self.mixer(x)))


def _drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()
