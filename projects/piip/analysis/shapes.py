"""Shapes of results without the detour through torch's own shape functions, which take milliseconds each in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PRODUCTS", "UNCOUNTED", "QuickShapes"]


def _alike(x: Tensor, *_: object, **__: object) -> Tensor:
    # Torch's empty_like takes four times as long.
    return x.new_empty(x.shape) if x.is_contiguous() else torch.empty_like(x)


def _combining(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator on elements: the result is mostly like the first argument, the others being as large or a row."""

    def answer(x: Tensor, *others: object, **options: object) -> Tensor:
        tensors = [other for other in others if isinstance(other, Tensor)]
        if x.is_floating_point() and all(t.dtype == x.dtype and t.shape == x.shape[x.ndim - t.ndim :] for t in tensors):
            return _alike(x)
        return operator(x, *others, **options)

    return answer


def _normed(x: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm gives, and the statistics that inference leaves unused."""
    return _alike(x), x.new_empty(()), x.new_empty(())


def _resized(x: Tensor, size: Sequence[int], *_: object, **__: object) -> Tensor:
    return x.new_empty(*x.shape[:2], *size)


Answers = Mapping[str, Callable[..., Any]]

_aten = torch.ops.aten
# Operators of inference by name: those that are not counted, and products. Views are quick themselves; what takes long
# is the way to them through a counter.
UNCOUNTED: Answers = {
    "aten::_safe_softmax": _alike,
    "aten::_softmax": _alike,
    "aten::add.Tensor": _combining(_aten.add.Tensor),
    "aten::addcmul": _combining(_aten.addcmul.default),
    "aten::gelu": _alike,
    "aten::mul.Scalar": _combining(_aten.mul.Scalar),
    "aten::mul.Tensor": _combining(_aten.mul.Tensor),
    "aten::relu": _alike,
    "aten::native_batch_norm": _normed,
    "aten::native_group_norm": _normed,
    "aten::native_layer_norm": _normed,
    "aten::upsample_bicubic2d": _resized,
    "aten::upsample_bilinear2d": _resized,
    "aten::_unsafe_view": _aten._unsafe_view.default,
    "aten::expand": _aten.expand.default,
    "aten::permute": _aten.permute.default,
    "aten::promote_types": _aten.promote_types.default,
    "aten::t": _aten.t.default,
    "aten::transpose.int": _aten.transpose.int,
    "aten::view": _aten.view.default,
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
        answer = self.answers.get(func.name())
        if answer is None:
            return func(*args, **(kwargs or {}))
        with no_dispatch():  # other modes have nothing to do with how it is answered
            return answer(*args, **(kwargs or {}))
