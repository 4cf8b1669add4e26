"""From one stride-16 map to a pyramid, and from there to Detectron2's FPN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN as _FPN
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..errors import ConfigError
from .merging import group_norm, he_normal_

__all__ = ["FPN", "ChannelMapper", "Doubling", "SimplePyramidNeck", "StageNeck"]


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution whose kernel and stride are 2: every cell becomes four, and no two cells meet.

    So it is one matrix product, which PyTorch does faster than the convolution.

    Shape:
        (B, in_channels, h, w) -> (B, out_channels, 2h, 2w), channels last in memory
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        weight, size = self.weight.permute(2, 3, 1, 0).flatten(0, 2), x.shape[2:]
        x = F.linear(x.flatten(2).transpose(1, 2), weight, self.bias.repeat(4))
        x = x.unflatten(1, size).unflatten(-1, (2, 2, -1)).transpose(2, 3)  # (B, h, 2, w, 2, out_channels)
        return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class SimplePyramidNeck(nn.Module):
    """A pyramid from one map, or from four of one stride: at a quarter, half, the same and twice that stride.

    Source: ViTDet (arXiv:2203.16527), Sec. 3, with the deconvolution stack of the released PIIP models (GroupNorm).

    Args:
        channels: width C of the input map, or the widths of the four.
        stride: stride of the input.
        out_features: which of ``"c2"`` (a quarter of the stride), ``"c3"``, ``"c4"``, ``"c5"`` to compute.
        norm: ``"GN"`` (32 groups) as in the released PIIP models, or ``"LN"`` (over channels) as in their
            single-branch baselines.

    Shape:
        (B, C, h, w), or one for each of the four -> c2 (B, C, 4h, 4w), c3 (B, C, 2h, 2w), c4 (B, C, h, w),
        c5 (B, C, h // 2, w // 2)
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        stride: int = 16,
        out_features: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "GN",
    ) -> None:
        super().__init__()
        norms = {"GN": group_norm, "LN": partial(LayerNorm2d, eps=1e-6)}
        if norm not in norms:
            raise ConfigError(f"norm={norm!r} is unknown; use one of {list(norms)}.")
        makers = {
            "c2": lambda width: nn.Sequential(
                Doubling(width, width), norms[norm](width), nn.GELU(), Doubling(width, width)
            ),
            "c3": lambda width: nn.Sequential(Doubling(width, width)),
            "c4": lambda width: nn.Identity(),
            "c5": lambda width: nn.MaxPool2d(2, stride=2),
        }
        widths = (
            dict.fromkeys(makers, channels) if isinstance(channels, int) else dict(zip(makers, channels, strict=True))
        )
        unknown = [name for name in out_features if name not in makers]
        if unknown or not out_features:
            raise ConfigError(f"out_features={list(out_features)} must be some of {list(makers)}.")
        if stride % 4:
            raise ConfigError(
                f"the merged map has stride {stride} (the patch size of the first branch), from which no pyramid can "
                "be made; use patches of a power of two from 4 pixels on."
            )
        strides = {"c2": stride // 4, "c3": stride // 2, "c4": stride, "c5": stride * 2}
        names = [name for name in makers if name in out_features]
        self._output_shape = {name: ShapeSpec(channels=widths[name], stride=strides[name]) for name in names}
        self._inputs = [list(makers).index(name) for name in names]
        self.levels = nn.ModuleDict({name: makers[name](widths[name]) for name in names})
        he_normal_(self)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    def replace_last(self, name: str, layer: nn.Module, channels: int) -> None:
        """Puts another layer, which gives so many channels, in the place of the last one of a level."""
        self.levels[name][-1] = layer
        shape = ShapeSpec(channels=channels, stride=self._output_shape[name].stride)
        self._output_shape = {**self._output_shape, name: shape}

    def forward(self, x: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        maps = [x] * 4 if isinstance(x, Tensor) else x
        return {
            name: level(maps[index]) for index, (name, level) in zip(self._inputs, self.levels.items(), strict=True)
        }


class StageNeck(nn.Module):
    """Names the maps of a network with stages: ``c2`` for stride 4 to ``c5`` for stride 32; nothing is computed.

    Args:
        channels: width of every map.
        strides: their strides, rising powers of two.
        out_features: which maps to return.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], out_features: Sequence[str]) -> None:
        super().__init__()
        if list(strides) != sorted(set(strides)) or any(s < 1 or s & (s - 1) for s in strides):
            raise ConfigError(
                f"the output maps of the first branch have strides {list(strides)}, which must rise as powers of two; "
                "choose out_interaction_indexes so that each is the last step of a stage."
            )
        names = [f"c{stride.bit_length() - 1}" for stride in strides]
        missing = [name for name in out_features if name not in names]
        if missing or not out_features:
            raise ConfigError(f"out_features={list(out_features)} must be some of {names}, the maps that there are.")
        shapes = [ShapeSpec(channels=c, stride=s) for c, s in zip(channels, strides, strict=True)]
        self._index = {name: k for k, name in enumerate(names) if name in out_features}
        self._output_shape = {name: shapes[k] for name, k in self._index.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: maps[k] for name, k in self._index.items()}


class FPN(_FPN):
    """Detectron2's FPN that also asks for the padding its bottom-up backbone was trained with.

    Detectron2's own class only asks for a multiple of its coarsest stride. The released PIIP models see images
    padded to multiples of 224 or 64, and the padding is content to them.
    """

    @property
    def size_divisibility(self) -> int:
        return math.lcm(super().size_divisibility, self.bottom_up.size_divisibility or 1)


class ChannelMapper(Backbone):
    """Brings maps to one width and adds coarser ones, for transformers that look at several levels at once.

    Each map goes through a 1x1 convolution and GroupNorm. Further levels come from 3x3 convolutions of stride 2, the
    first one from the last map of the network below, each next one from the level before it. Runs in float32.

    Args:
        bottom_up: backbone with the maps.
        in_features: which maps to take, finest first.
        out_channels: common width, a multiple of 32.
        num_outputs: levels, at least as many as maps.

    Shape:
        (B, 3, H, W) -> ``p3`` for stride 8 and so on, each (B, out_channels, H / stride, W / stride)

    Raises:
        ConfigError: for an unknown map, or numbers that do not fit.
    """

    def __init__(
        self, bottom_up: Backbone, in_features: Sequence[str], out_channels: int = 256, num_outputs: int = 4
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = [name for name in in_features if name not in shapes]
        if unknown or not in_features:
            raise ConfigError(f"in_features={list(in_features)} must be some of {list(shapes)}, the backbone's maps.")
        if num_outputs < len(in_features):
            raise ConfigError(
                f"num_outputs={num_outputs} must be at least {len(in_features)}, the number of in_features."
            )
        if out_channels % 32:
            raise ConfigError(f"out_channels={out_channels} must be a multiple of 32 for GroupNorm.")
        self.bottom_up, self.in_features = bottom_up, list(in_features)
        widths = [shapes[name].channels for name in in_features]
        self.lateral = nn.ModuleList(_conv_norm(width, out_channels, kernel_size=1) for width in widths)
        self.extra = nn.ModuleList(
            _conv_norm(out_channels if k else widths[-1], out_channels, kernel_size=3, stride=2, padding=1)
            for k in range(num_outputs - len(widths))
        )
        strides = [shapes[name].stride for name in in_features]
        strides += [strides[-1] * 2 ** (k + 1) for k in range(len(self.extra))]
        self._output_shape = {f"p{int(math.log2(s))}": ShapeSpec(channels=out_channels, stride=s) for s in strides}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up(image)
        # Meta tensors, on which models are counted, know no autocast.
        with nullcontext() if image.is_meta else torch.autocast(image.device.type, enabled=False):
            maps = [features[name].float() for name in self.in_features]
            levels = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
            x = maps[-1]
            for conv in self.extra:
                levels.append(x := conv(x))
        return dict(zip(self._output_shape, levels, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    @property
    def size_divisibility(self) -> int:
        """What the sides of padded batches must be a multiple of, in pixels."""
        return self.bottom_up.size_divisibility


def _conv_norm(in_channels: int, out_channels: int, **kwargs: int) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, bias=False, norm=group_norm(out_channels), **kwargs)
    nn.init.xavier_uniform_(conv.weight)
    return conv
