"""The feature pyramid network of the LSNet detectors: exact sizes, and one level finer or coarser than the maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean

__all__ = ["LSNetFPN"]


class LSNetFPN(Backbone):
    """Feature pyramid network for maps of any size, without norms.

    The top-down path resizes (nearest) to the exact size of the next finer map, where Detectron2's own doubles and so
    needs inputs that are multiples of the last stride.

    Source: Feature Pyramid Networks (arXiv:1612.03144); released LSNet detectors for the further levels.

    Args:
        bottom_up: backbone with the maps.
        in_features: which maps to take, finest first.
        out_channels: common width.
        finer_level: add a level of half the first stride, by a transposed convolution of the finest merged map, as
            Mask R-CNN does.
        coarser_level: add a level of twice the last stride, by a convolution of the coarsest map of the backbone, as
            RetinaNet does.

    Shape:
        (B, 3, H, W) -> the maps that it takes, by their own names; then ``p3`` for stride 8 and so on, finest first,
        each (B, out_channels, h, w) with the sizes of the maps; twice the size of the finest map for the finer level,
        half of the coarsest (rounded up) for the coarser

    Raises:
        ConfigError: for an unknown map, or maps whose strides do not double.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str] = ("c3", "c4", "c5", "c6"),
        out_channels: int = 256,
        finer_level: bool = False,
        coarser_level: bool = False,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if unknown := [name for name in in_features if name not in shapes]:
            hint = did_you_mean(unknown[0], shapes)
            raise ConfigError(f"in_features={list(in_features)} must be some of {list(shapes)}.{hint}")
        strides = [shapes[name].stride for name in in_features]
        if not strides or any(s & (s - 1) or s != strides[0] * 2**i for i, s in enumerate(strides)):
            raise ConfigError(
                f"in_features={list(in_features)} have strides {strides}; name maps whose strides are powers of two "
                "and double from one to the next."
            )
        self.bottom_up, self.in_features = bottom_up, list(in_features)
        if finer_level:
            strides.insert(0, strides[0] // 2)
        if coarser_level:
            strides.append(strides[-1] * 2)
        levels = {f"p{s.bit_length() - 1}": ShapeSpec(channels=out_channels, stride=s) for s in strides}
        self._output_shape = {name: shapes[name] for name in in_features} | levels
        self.lateral_convs = nn.ModuleDict({n: nn.Conv2d(shapes[n].channels, out_channels, 1) for n in in_features})
        self.output_convs = nn.ModuleDict(
            {name: nn.Conv2d(out_channels, out_channels, 3, padding=1) for name in levels}
        )
        self.finer_conv = nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2) if finer_level else None
        self.coarser = list(levels)[-1] if coarser_level else None
        if self.coarser:
            last = shapes[in_features[-1]].channels
            self.output_convs[self.coarser] = nn.Conv2d(last, out_channels, 3, stride=2, padding=1)
        for conv in (*self.lateral_convs.values(), *self.output_convs.values()):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        if self.finer_conv is not None:
            nn.init.kaiming_normal_(self.finer_conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.finer_conv.bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up(image)
        merged: list[Tensor] = []
        for name in reversed(self.in_features):
            x = self.lateral_convs[name](features[name])
            if merged:
                x = x + F.interpolate(merged[0], size=x.shape[2:], mode="nearest")
            merged.insert(0, x)
        if self.finer_conv is not None:
            merged.insert(0, self.finer_conv(merged[0]))
        if self.coarser:
            merged.append(features[self.in_features[-1]])
        levels = {name: conv(x) for (name, conv), x in zip(self.output_convs.items(), merged, strict=True)}
        return {name: features[name] for name in self.in_features} | levels

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    @property
    def size_divisibility(self) -> int:
        """What the sides of padded batches must be a multiple of, in pixels."""
        return self.bottom_up.size_divisibility
