"""One branch as a backbone of its own: the plain networks that the papers compare PIIP with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbone import PyramidBackbone, token_map
from .branches import Branch
from .necks import SimplePyramidNeck, StageNeck

__all__ = ["SingleBranch"]


class SingleBranch(PyramidBackbone):
    """A branch, all of its blocks, and a map per stage or the simple feature pyramid.

    A branch in stages returns what every stage ends with, as it is. From a branch whose grid does not change, the four
    maps are made of its only one.

    Args:
        branch: any branch.
        out_features: output maps, some of ``c2`` ... ``c5`` (strides 4 ... 32).
        size_divisibility: what padded batches must be a multiple of, in pixels.

    Shape:
        (B, 3, H, W) -> c2 (B, C, H/4, W/4) ... c5 (B, C, H/32, W/32), where C is the width of the branch or stage.
    """

    def __init__(
        self,
        branch: Branch,
        out_features: Sequence[str] = ("c2", "c3", "c4", "c5"),
        size_divisibility: int = 32,
    ) -> None:
        super().__init__(size_divisibility)
        self.branch = branch
        self.input_stride = 1 if branch.rounds_up else branch.strides[-1]
        # The last block of every stage.
        self.ends = [i for i, s in enumerate(branch.strides) if s != (*branch.strides, None)[i + 1]]
        widths, strides = ([values[i] for i in self.ends] for values in (branch.out_channels, branch.strides))
        if len(self.ends) == 1:
            self.neck: nn.Module = SimplePyramidNeck(widths[0], strides[0], out_features, norm="LN")
        else:
            self.neck = StageNeck(widths, strides, out_features)

    def compute_maps(self, image: Tensor, dtype: torch.dtype) -> Tensor | list[Tensor]:
        state, maps, start = self.branch.embed(image.to(dtype)), [], 0
        for end in self.ends:
            state = self.branch.run(state, start, end + 1)
            maps.append(token_map(state))
            start = end + 1
        return maps if len(maps) > 1 else maps[0]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the branch in the backward pass."""
        self.branch.set_grad_checkpointing(enable)
