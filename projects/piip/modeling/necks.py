"""From one stride-16 map to a pyramid, and from there to Detectron2's FPN."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN as _FPN
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..errors import ConfigError
from .merging import group_norm, he_normal_

__all__ = ["FPN", "SimplePyramidNeck"]


class SimplePyramidNeck(nn.Module):
    """A pyramid from one map: at a quarter, half, the same and twice its stride, all of its width.

    Source: ViTDet (arXiv:2203.16527), Sec. 3, with the deconvolution stack of the released PIIP models (GroupNorm).

    Args:
        channels: width C.
        stride: stride of the input map.
        out_features: which of ``"c2"`` (a quarter of the stride), ``"c3"``, ``"c4"``, ``"c5"`` to compute.
        norm: ``"GN"`` (32 groups) as in the released PIIP models, or ``"LN"`` (over channels) as in their
            single-branch baselines.

    Shape:
        (B, C, h, w) -> c2 (B, C, 4h, 4w), c3 (B, C, 2h, 2w), c4 (B, C, h, w), c5 (B, C, h // 2, w // 2)
    """

    def __init__(
        self,
        channels: int,
        stride: int = 16,
        out_features: Sequence[str] = ("c2", "c3", "c4", "c5"),
        norm: str = "GN",
    ) -> None:
        super().__init__()
        norms = {"GN": lambda: group_norm(channels), "LN": lambda: LayerNorm2d(channels, eps=1e-6)}
        if norm not in norms:
            raise ConfigError(f"norm={norm!r} is unknown; use one of {list(norms)}.")
        makers = {
            "c2": lambda: nn.Sequential(
                nn.ConvTranspose2d(channels, channels, 2, stride=2),
                norms[norm](),
                nn.GELU(),
                nn.ConvTranspose2d(channels, channels, 2, stride=2),
            ),
            "c3": lambda: nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, stride=2)),
            "c4": nn.Identity,
            "c5": lambda: nn.MaxPool2d(2, stride=2),
        }
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
        self._output_shape = {name: ShapeSpec(channels=channels, stride=strides[name]) for name in names}
        self.levels = nn.ModuleDict({name: makers[name]() for name in names})
        he_normal_(self)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: level(x) for name, level in self.levels.items()}


class FPN(_FPN):
    """Detectron2's FPN that also asks for the padding its bottom-up backbone was trained with.

    Detectron2's own class only asks for a multiple of its coarsest stride. The released PIIP models see images
    padded to multiples of 224 or 64, and the padding is content to them.
    """

    @property
    def size_divisibility(self) -> int:
        return math.lcm(super().size_divisibility, self.bottom_up.size_divisibility or 1)
