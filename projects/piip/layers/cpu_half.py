"""Half precision on a CPU that has no instructions for it: products in float32, which are faster there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .cpu_conv import CPUConv2d, is_plain
from .exporting import is_exporting

__all__ = ["Float32Conv2d", "Float32Linear", "lacks_instructions"]

_INSTRUCTIONS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}


def lacks_instructions(dtype: torch.dtype) -> bool:
    """Whether this processor is known to have none for matrix products of a half-precision type."""
    # Older versions of torch have no such function, and other architectures other names.
    processor = getattr(torch.cpu, "get_capabilities", dict)()
    if dtype not in _INSTRUCTIONS or processor.get("architecture") != "x86_64":
        return False
    return not any(processor.get(name) for name in _INSTRUCTIONS[dtype])


class Float32Linear(nn.Linear):
    """A linear layer with parameters and outputs of half precision that multiplies in float32, on a CPU.

    Args:
        linear: whose parameters it takes over.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether it is a linear layer that becomes faster so."""
        return type(layer) is nn.Linear and _is_slow(layer)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu or is_exporting():  # exported files are for other processors, too
            return super().forward(x)
        return F.linear(x.float(), *_wide(self)).to(x.dtype)


class Float32Conv2d(CPUConv2d):
    """A convolution with parameters and outputs of half precision that multiplies in float32, on a CPU."""

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Whether it is a convolution, of PyTorch or Detectron2, that becomes faster so."""
        return type(layer) in (nn.Conv2d, Conv2d) and _is_slow(layer)

    def product(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.float(), *_wide(self)).to(x.dtype)


def _is_slow(layer: nn.Module) -> bool:
    return is_plain(layer) and lacks_instructions(layer.weight.dtype)


def _wide(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    return layer.weight.float(), None if layer.bias is None else layer.bias.float()
