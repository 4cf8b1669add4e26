"""What Triton kernels need."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor
from torch.torch_version import TorchVersion

__all__ = ["device_of", "missing"]


def missing() -> str | None:
    """Why this machine cannot run the kernels, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    # Tuples as arguments came with it.
    return None if TorchVersion(triton.__version__) >= "3.3" else f"Triton {triton.__version__} is older than 3.3"


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of a tensor the current one; nothing on a CPU, where the interpreter runs the kernels."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
