"""SKA on the CPU by the C++ kernels of ``ska_cpu.cpp``: float32, float64 and bfloat16, 3x3 taps, J a divisor of C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .cpu_library import library_problem, load_library
from .memory import dense, dense_like, is_channels_last

__all__ = ["backward", "forward", "forward_normed", "missing", "obstacle"]

_SOURCE = Path(__file__).with_name("ska_cpu.cpp")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def missing() -> str | None:
    """Why this machine cannot run the kernels, or None; builds them."""
    return library_problem(_SOURCE)


def obstacle(x: Tensor, w: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if x.device.type != "cpu":
        return f"they do not take {x.device.type} tensors"
    if x.dtype not in _DTYPES:
        return f"they do not take {x.dtype}"
    if w.shape[2] != 9:
        return f"they do not take {w.shape[2]} taps"
    if x.shape[1] % w.shape[1]:
        return f"they do not take {x.shape[1]} channels with {w.shape[1]} weight channels"
    return None


def forward(x: Tensor, w: Tensor) -> Tensor:
    """See :func:`piip.layers.ska`."""
    x, out = dense(x), dense_like(x)
    _call("forward", x, w, (x, w, out), w.stride())
    return out


def forward_normed(x: Tensor, w: Tensor, norms: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """See :func:`piip.layers.normed_ska`."""
    x, out = dense(x), dense_like(x)
    norms = [t.to(torch.promote_types(x.dtype, torch.float32)).contiguous() for t in norms]
    pointers = (ctypes.c_void_p * len(norms))(*(t.data_ptr() for t in norms))
    _call("forward_normed", x, w, (x, w, out), w.stride(), pointers, *map(ctypes.c_double, eps))
    return out


def backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x`` and ``w``."""
    x, gx, gw = dense(x), dense_like(x), torch.empty_like(w)
    _call("backward", x, w, (dense(grad, like=x), x, w, gx, gw), (*w.stride(), *gw.stride()))
    return gx, gw


def _call(name: str, x: Tensor, w: Tensor, tensors: Sequence[Tensor], strides: Sequence[int], *more: object) -> None:
    function = getattr(load_library(_SOURCE), f"ska_{name}_{str(x.dtype).removeprefix('torch.')}")
    sizes = (x.shape[0], x.shape[1], *w.shape[1::2], w.shape[4], *strides)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    function(is_channels_last(x), (ctypes.c_int64 * len(sizes))(*sizes), *pointers, *more, torch.get_num_threads())
