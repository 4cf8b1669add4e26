"""Branch merging: all branches on the finest grid, added with learned weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute

from ..errors import ConfigError

__all__ = ["BranchMerge", "LinearMerge", "StageMerge", "group_norm", "he_normal_"]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups.

    Raises:
        ConfigError: when 32 does not divide ``channels``.
    """
    if channels % 32:
        raise ConfigError(
            f"the width {channels} of the last branch, which is that of the merged map, must be a multiple of 32 for "
            "its GroupNorm; choose another embed_dim."
        )
    return nn.GroupNorm(32, channels)


def he_normal_(module: nn.Module) -> None:
    """Initialises every (transposed) convolution inside: N(0, sqrt(2 / fan_out)), zero bias.

    ``fan_out`` is ``kernel area * out_channels / groups`` for both kinds.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            nn.init.normal_(m.weight, std=(2 / fan_out) ** 0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


class BranchMerge(nn.Module):
    """Projects every branch to one width, upsamples it to the finest grid and takes the weighted sum.

    Source: PIIP (arXiv:2501.07783), Sec. 3.4.

    Args:
        in_channels: width of every branch, finest grid first.
        out_channels: common width.

    Shape:
        maps (B, C_k, h_k, w_k), finest first -> (B, out_channels, h_0, w_0)
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.projections = nn.ModuleList(
            self.make_projection(channels, last=k == len(in_channels) - 1) for k, channels in enumerate(in_channels)
        )
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in in_channels)

    def make_projection(self, in_channels: int, last: bool) -> nn.Sequential:
        """Two 3x3 convolutions to the common width, each with GroupNorm and ReLU."""
        projection = nn.Sequential(*self._conv(in_channels), *self._conv(self.out_channels))
        he_normal_(projection)
        return projection

    def _conv(self, in_channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, self.out_channels, 3, padding=1, bias=False),
            group_norm(self.out_channels),
            nn.ReLU(inplace=True),
        ]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        total = None
        for x, projection, weight in zip(maps, self.projections, self.weights, strict=True):
            x = projection(x)
            if x.shape[2:] != size:
                x = F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False).to(x.dtype)
            total = weight * x if total is None else torch.addcmul(total, weight, x)
        return total


class StageMerge(BranchMerge):
    """The merging of pyramids with one output map per stage of their branches ("regular FPN").

    The last branch, which already has the common width, is only normalised; the others have one convolution.

    Source: PIIP released models, ConvNeXt and hybrid pyramids.
    """

    def make_projection(self, in_channels: int, last: bool) -> nn.Sequential:
        """GroupNorm and ReLU for the last branch, with a 3x3 convolution before them for the others."""
        if last:
            return nn.Sequential(group_norm(in_channels), nn.ReLU())
        projection = nn.Sequential(*self._conv(in_channels))
        he_normal_(projection)
        return projection


class LinearMerge(BranchMerge):
    """The merging of the classification form: a linear layer per branch instead of convolutions.

    The last branch, which already has the common width, is only normalised.

    Source: PIIP released models; the cost of most published detectors was counted with it.
    """

    def make_projection(self, in_channels: int, last: bool) -> nn.Module:
        """GroupNorm for the last branch; GroupNorm, linear layer and GroupNorm for the others."""
        if last:
            return group_norm(in_channels)
        linear = nn.Linear(in_channels, self.out_channels)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(
            group_norm(in_channels), Permute([0, 2, 3, 1]), linear, Permute([0, 3, 1, 2]), group_norm(self.out_channels)
        )
