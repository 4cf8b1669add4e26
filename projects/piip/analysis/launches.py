"""What a forward pass launches on a GPU, counted without one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .fake import FusedAttention, without_memory

__all__ = ["launches"]

# They make a tensor, but write nothing.
_IDLE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def launches(model: nn.Module, image: Tensor) -> Counter[str]:
    """Counts the operators of one call in inference that write memory, views and shapes being free.

    Each counts once, as do our own and fused attention. A few are several kernels on a GPU (group norms, the bias of a
    convolution), and some copy an argument that is not contiguous. The second call is counted: positions and reference
    points are made in the first one of a size, and kept.

    Args:
        model: a backbone or a classifier, on any device; it stays as it is.
        image: (B, 3, H, W); only its shape and type count.

    Returns:
        how often each operator was called, by name.
    """
    counting = _Counting()
    # In inference mode, operators that consist of others would be seen as one.
    with torch.inference_mode(False), torch.no_grad(), without_memory(model, "cuda") as fake, FusedAttention():
        fake.eval()
        image = torch.empty(image.shape, dtype=image.dtype, device="cuda")
        fake(image)
        with counting:
            fake(image)
    return counting.calls


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name  # without the overload
        writes = not func.is_view and name.split("::")[1] not in _IDLE
        if writes and any(isinstance(result, Tensor) for result in tree_leaves(out)):
            self.calls[name] += 1
        return out
