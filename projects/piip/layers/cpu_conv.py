"""Convolutions as matrix products: what inference on a CPU computes faster than by PyTorch's convolution."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exporting import is_exporting

__all__ = ["CPUConv2d", "PointwiseConv2d", "batch_channels_last", "is_plain"]


def is_plain(layer: nn.Module) -> bool:
    """Whether a weight is on a CPU and its layer has nothing added, such as hooks, that another layer would lack."""
    weight = layer.weight
    return isinstance(weight, nn.Parameter) and weight.is_cpu and not (layer._forward_hooks or layer._forward_pre_hooks)


class CPUConv2d(nn.Conv2d, ABC):
    """The same as the convolution that it is made of, computed another way on a CPU when there are no gradients.

    Elsewhere (on other devices, under autocast, with gradients, in exported files) it is the convolution of PyTorch.

    Args:
        conv: a convolution, whose parameters it takes over; not the norm and the activation that one of Detectron2 has,
            too.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) if self.fits(x) else super().forward(x)

    def fits(self, x: Tensor) -> bool:
        """Whether :meth:`product` is for this input."""
        if not x.is_cpu or x.dim() != 4 or x.dtype != self.weight.dtype or is_exporting() or torch.jit.is_tracing():
            return False
        learns = any(t is not None and t.requires_grad for t in (x, self.weight, self.bias))
        return not (learns and torch.is_grad_enabled()) and not torch.is_autocast_enabled("cpu")

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """What :meth:`forward` gives, on a CPU."""


class PointwiseConv2d(CPUConv2d):
    """A 1x1 convolution of stride 1: one product for all images of a batch, channels last, in place of one per image.

    It pays where maps are small, as LSNet's are, and where what is before and after it has channels last, too: see
    :func:`batch_channels_last`.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W)
    """

    def fits(self, x: Tensor) -> bool:
        return len(x) > 1 and super().fits(x)  # of one image, the convolution is one product, too

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def batch_channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A hook before modules with layers of :class:`PointwiseConv2d`: puts channels last where these compute."""
    x = inputs[0]
    if not x.is_cpu or is_exporting() or torch.jit.is_tracing() or len(x) == 1:
        return None
    return (x.contiguous(memory_format=torch.channels_last),)
