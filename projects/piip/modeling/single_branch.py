"""One branch as a backbone of its own: the plain networks that the papers compare PIIP with."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor

from .branches import Branch
from .necks import SimplePyramidNeck
from .pyramid import check_input

__all__ = ["SingleBranch"]


class SingleBranch(Backbone):
    """A branch, all of its blocks, and the simple feature pyramid.

    Args:
        branch: any branch whose grid does not change between blocks.
        out_features: output maps, some of ``c2`` ... ``c5`` (strides 4 ... 32 for 16-pixel patches).
        size_divisibility: what padded batches must be a multiple of, in pixels.

    Shape:
        (B, 3, H, W) -> c2 (B, C, H/4, W/4) ... c5 (B, C, H/32, W/32)
    """

    def __init__(
        self,
        branch: Branch,
        out_features: Sequence[str] = ("c2", "c3", "c4", "c5"),
        size_divisibility: int = 32,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.neck = SimplePyramidNeck(branch.out_channels[-1], branch.strides[-1], out_features, norm="LN")
        self._size_divisibility = size_divisibility

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_input(image, self.branch.embed_stride)
        state = self.branch.run(self.branch.embed(image), 0, self.branch.num_blocks)
        return self.neck(state.tokens.transpose(1, 2).unflatten(2, state.grid_size))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self.neck.output_shape()

    @property
    def size_divisibility(self) -> int:
        """What the sides of padded batches must be a multiple of, in pixels."""
        return self._size_divisibility

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the branch in the backward pass."""
        self.branch.set_grad_checkpointing(enable)
