"""Models that run without memory, as on a device that need not be there.

torch's fake tensors have a device and a type but no memory: autocast, the choice of operators and autograd behave as on
that device.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

__all__ = ["FusedAttention", "without_memory"]


@contextlib.contextmanager
def without_memory(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
    """The same modules in training mode around fake tensors, which can be used as long as this lasts.

    Args:
        model: it stays as it is.
        device: of the fake tensors.
        dtype: type of the weights; None for their own.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # What deepcopy finds in its memo it takes as already copied.
        memo: dict[int, Any] = {id(b): _fake(b, device, dtype) for b in model.buffers()}
        memo |= {id(p): nn.Parameter(_fake(p, device, dtype), p.requires_grad) for p in model.parameters()}
        others = (t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor))
        memo |= {id(t): _fake(t, device, dtype) for t in others}
        yield copy.deepcopy(model, memo).train()


def _fake(tensor: Tensor, device: str, dtype: torch.dtype | None) -> Tensor:
    changed = dtype is not None and tensor.is_floating_point()
    return torch.empty(tensor.shape, dtype=dtype if changed else tensor.dtype, device=device)


class FusedAttention(TorchFunctionMode):
    """Attention on fake CUDA tensors as one operator; torch would ask the device, which may be missing, for its own."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_cuda:
            bias = kwargs.get("attn_mask")
            if bias is None:
                return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
            query, key, value = args[:3]
            bias = bias.to(query.dtype).expand(*query.shape[:3], key.shape[2])
            return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
        return func(*args, **kwargs)
