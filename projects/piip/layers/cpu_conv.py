"""Convolutions as matrix products: what inference on a CPU computes faster than by PyTorch's convolution."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .exporting import is_exporting

__all__ = ["CPUConv2d", "PointwiseConv2d"]


class CPUConv2d(nn.Conv2d, ABC):
    """The same as the convolution that it is made of, computed another way on a CPU when there are no gradients.

    Elsewhere (on other devices, under autocast, with gradients, in exported files) it is the convolution of PyTorch.

    Its weights are prepared when it is made and when a state dict is loaded, and must not change in other ways.

    Args:
        conv: the convolution, whose parameters it takes over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            padding=conv.padding,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        # No buffer: it would go to GPUs and into exported files, where nothing uses it.
        self.prepared = self.prepare(self.weight.detach())

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self.prepared = self.prepare(self.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        fits = x.is_cpu and x.dtype == self.weight.dtype == self.prepared.dtype
        gradients = torch.is_grad_enabled() and x.requires_grad
        if not fits or gradients or is_exporting() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return self.product(x)

    @abstractmethod
    def prepare(self, weight: Tensor) -> Tensor:
        """Weights (out_channels, in_channels, *kernel_size) in the form in which :meth:`product` takes them."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """What :meth:`forward` gives, on a CPU."""


def is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution of PyTorch's or Detectron2's, on a CPU, of all channels with all."""
    return type(layer) in (nn.Conv2d, Conv2d) and layer.groups == 1 and layer.weight.is_cpu


class PointwiseConv2d(CPUConv2d):
    """A 1x1 convolution of stride 1: one product for all images of a batch, channels last, in place of one per image.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W)
    """

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether it is such a convolution, on a CPU."""
        if not is_plain(layer):
            return False
        return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)

    def prepare(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        # Of one image, the convolution is one product, too.
        return super().forward(x) if len(x) > 1 else self._conv_forward(x, self.weight, self.bias)

    def product(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        rows = tokens.flatten(0, 2)
        rows = rows @ self.prepared if self.bias is None else torch.addmm(self.bias, rows, self.prepared)
        return rows.view(*tokens.shape[:3], -1).permute(0, 3, 1, 2)
