"""Shapes of results without the detour through torch's own shape functions, which take milliseconds each in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PRODUCTS", "UNCOUNTED", "QuickShapes"]


def _alike(x: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(x)


def _normed(x: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm gives, and the statistics that inference leaves unused."""
    return torch.empty_like(x), x.new_empty(()), x.new_empty(())


def _resized(x: Tensor, size: Sequence[int], *_: object, **__: object) -> Tensor:
    return x.new_empty(*x.shape[:2], *size)


Answers = Mapping[str, Callable[..., Any]]

# Operators of inference by name: those that are not counted, and products.
UNCOUNTED: Answers = {
    "aten::_safe_softmax": _alike,
    "aten::gelu": _alike,
    "aten::relu": _alike,
    "aten::native_batch_norm": _normed,
    "aten::native_group_norm": _normed,
    "aten::native_layer_norm": _normed,
    "aten::upsample_bicubic2d": _resized,
    "aten::upsample_bilinear2d": _resized,
}
PRODUCTS: Answers = {"aten::addmm": lambda bias, a, b, **_: a.new_empty(a.shape[0], b.shape[1])}


class QuickShapes(TorchDispatchMode):
    """While active, some operators on meta tensors answer with an empty tensor of their shape.

    Args:
        answers: what these operators give, by their names.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.answers.get(func.name(), func)(*args, **(kwargs or {}))
