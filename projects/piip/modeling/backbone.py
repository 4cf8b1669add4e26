"""What the backbones of this package share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .branches import BranchState
from .pyramid import check_input

__all__ = ["PyramidBackbone", "token_map"]


class PyramidBackbone(Backbone):
    """A backbone whose last part is a neck that makes the output maps.

    Attributes:
        neck: makes and describes the outputs.
        input_stride: what the sides of an input must be a multiple of, in pixels.
        size_divisibility: what the sides of padded batches must be a multiple of, in pixels.
    """

    neck: nn.Module
    input_stride: int

    def __init__(self, size_divisibility: int) -> None:
        super().__init__()
        self._size_divisibility = size_divisibility

    @abstractmethod
    def compute_maps(self, image: Tensor, dtype: torch.dtype) -> Tensor | list[Tensor]:
        """Turns the image into what the neck takes, in the type of the weights."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_input(image, self.input_stride)
        # A backbone in bfloat16 or float16 (the billion-parameter ones) sits between a float32 image and float32 heads.
        dtype = next(self.parameters()).dtype
        outputs = self.neck(self.compute_maps(image, dtype))
        return outputs if dtype == image.dtype else {name: x.to(image.dtype) for name, x in outputs.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self.neck.output_shape()

    @property
    def size_divisibility(self) -> int:
        """What the sides of padded batches must be a multiple of, in pixels."""
        return self._size_divisibility


def token_map(state: BranchState) -> Tensor:
    """Tokens (B, h*w, C) as a map (B, C, h, w), channels last in memory."""
    # In this order: unflattened after the transposition, a batch of one would not be taken for channels last.
    return state.tokens.unflatten(1, state.grid_size).permute(0, 3, 1, 2)
