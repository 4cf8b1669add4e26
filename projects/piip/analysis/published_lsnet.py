"""#Params and #FLOPs as the LSNet paper counts them.

The published numbers are those of the classifiers without distillation. fvcore counts one operation for every
multiply-add of convolutions, linear layers, attention and the aggregation of LS convolution, two per element of a
BatchNorm and five of a GroupNorm. The parameters are those left after fusing; the operations fit what is counted before
it (LSNet-B has 1.26 G then, and 1.25 G after it, which would not be printed as 1.3).

Source: LSNet (arXiv:2503.23135), Table 1; its released counting script.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from ..modeling.fuse import fuse
from .cost import Cost

__all__ = ["lsnet_cost"]


def lsnet_cost(classifier: nn.Module, size: tuple[int, int] = (224, 224)) -> Cost:
    """Counts an LSNet classifier; weights are not looked at, so meta tensors do."""
    # fvcore traces, which meta tensors cannot be.
    model = copy.deepcopy(classifier).to_empty(device="cpu").eval()
    with torch.no_grad():
        counter = FlopCountAnalysis(model, torch.zeros(1, 3, *size))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counter.set_op_handle("piip::ska", _aggregation)
        counter.set_op_handle("aten::scaled_dot_product_attention", _attention)
        macs = counter.total()
    return Cost(sum(p.numel() for p in fuse(model).parameters()), macs)


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _aggregation(inputs: list[Any], outputs: list[Any]) -> int:
    """One multiply-add per tap of every channel's kernel."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[1])[2]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys, and weights times values."""
    (*batch, queries, width), keys, values = map(_shape, inputs[:3])
    return math.prod(batch) * queries * keys[-2] * (width + values[-1])
