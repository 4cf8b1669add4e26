"""Deformable attention on the CPU by the C++ kernels of ``deform_attn_cpu.cpp``; float16 where the compiler has it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .cpu_library import library_problem, load_library

__all__ = ["backward", "forward", "missing", "obstacle"]

_SOURCE = Path(__file__).with_name("deform_attn_cpu.cpp")


def missing() -> str | None:
    """Why this machine cannot run the kernels, or None; builds them."""
    return library_problem(_SOURCE)


def obstacle(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    if value.device.type != "cpu":
        return f"they do not take {value.device.type} tensors"
    if value.shape[1] >= 2**31:
        return "they do not take maps of 2**31 cells"
    if not hasattr(load_library(_SOURCE), _name("forward", value)):
        return f"this compiler has no {value.dtype}"
    return None


def forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """See :func:`piip.layers.deform_attn`; ``sizes`` are height and width of every level, one after the other."""
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    _call("forward", sizes, (value, locations, weights), (out,))
    return out


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``value``, ``locations`` and ``weights``."""
    results = tuple(t.new_empty(t.shape) for t in (value, locations, weights))
    _call("backward", sizes, (grad, value, locations, weights), results)
    return results


def _call(what: str, sizes: Sequence[int], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    *_, value, _, weights = inputs
    # They live until the call is over.
    tensors = [*(t.contiguous() for t in inputs), *outputs]
    function = getattr(load_library(_SOURCE), _name(what, value))
    numbers = _int64s(*value.shape, weights.shape[1], *weights.shape[3:])
    function(numbers, _int64s(*sizes), *(ctypes.c_void_p(t.data_ptr()) for t in tensors), torch.get_num_threads())


def _name(what: str, value: Tensor) -> str:
    return f"deform_attn_{what}_{str(value.dtype).removeprefix('torch.')}"


def _int64s(*numbers: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(numbers))(*numbers)
