"""SKA at LSNet's shapes: every backend beside the form that lays out all neighbourhoods."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..layers import ska_reference
from ..layers.ska import backends
from .records import Row, environment
from .timing import Settings, in_turns, peak_memory

__all__ = ["CASES", "OpCase"]

# Relative error in the L2 norm that a row may have against float64.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Inputs that a GPU cycles through, so that none is still in its cache.
_GPU_BYTES = 256 * 2**20

Inputs = tuple[Tensor, Tensor, Tensor]  # x, w, gradient of the output


@dataclass(frozen=True)
class OpCase:
    """SKA of one size.

    Attributes:
        size: height and width.
        channels: of x; there are an eighth as many weight channels.
        batch: images.
        backward: whether gradients are computed, too.
    """

    size: tuple[int, int]
    channels: int
    batch: int
    backward: bool

    @property
    def name(self) -> str:
        height, width = self.size
        what = "forward + backward" if self.backward else "forward"
        return f"SKA {height}x{width} C{self.channels} B{self.batch} {what}"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.batch == 8 and (self.size, self.channels) in _LSNET_B

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the plain form, all backends in both memory orders, and a copy of x for scale.

        Raises:
            ArithmeticError: when a result is wrong.
        """
        inputs = self._inputs(settings)
        ways = {"unfold": (partial(_plain, self.backward), inputs)}
        for name, module in backends(settings.device).items():
            for order, given in {name: inputs, f"{name}, channels last": _channels_last(inputs)}.items():
                if module.obstacle(*given[0][:2]) is None:
                    ways[order] = partial(_backend, module, self.backward), given
        exact = _plain(self.backward, *(t.double() for t in inputs[0]))
        numbers = {name: _checked(name, self.name, way, given[0], exact) for name, (way, given) in ways.items()}
        ways["copy of x"] = (lambda x, w, grad: x.clone()), inputs

        turns = in_turns({name: _cycling(way, given) for name, (way, given) in ways.items()}, settings)
        about = environment(settings)
        return [
            Row("ops", self.name, name, t.median, t.minimum, t.spread, t.ratio, numbers.get(name, {}), about)
            for name, t in turns.items()
        ]

    def _inputs(self, settings: Settings) -> list[Inputs]:
        b, c, size = self.batch, self.channels, self.size
        shapes = (b, c, *size), (b, c // 8, 9, *size), (b, c, *size)
        itemsize = settings.dtype.itemsize
        count = 1 if settings.device == "cpu" else 1 + _GPU_BYTES // (itemsize * b * c * size[0] * size[1])
        torch.manual_seed(0)
        return [tuple(torch.randn(s, device=settings.device).to(settings.dtype) for s in shapes) for _ in range(count)]


_LSNET_B = [((28, 28), 128), ((14, 14), 256), ((7, 7), 384)]
CASES = [
    OpCase(size, channels, batch, backward)
    for backward in (False, True)
    for (size, channels), batch in [
        *itertools.product(_LSNET_B, (1, 8)),  # at 224 pixels
        *itertools.product([((14, 14), 192), ((7, 7), 320)], (1, 8)),  # LSNet-S
        *itertools.product([((14, 14), 128), ((7, 7), 256)], (1, 8)),  # LSNet-T
        (((100, 168), 128), 1),  # LSNet-B in detection
    ]
]


def _plain(backward: bool, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    if not backward:
        return (ska_reference(x, w),)
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    with torch.enable_grad():
        out = ska_reference(x, w)
    return out.detach(), *torch.autograd.grad(out, (x, w), grad)


def _backend(module: ModuleType, backward: bool, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    out = module.forward(x, w)
    return (out, *module.backward(grad, x, w)) if backward else (out,)


def _channels_last(inputs: list[Inputs]) -> list[Inputs]:
    """As convolutions of channels-last memory write them."""

    def weights(w: Tensor) -> Tensor:
        return w.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)

    last = torch.channels_last
    return [
        (x.contiguous(memory_format=last), weights(w), grad.contiguous(memory_format=last)) for x, w, grad in inputs
    ]


def _checked(name: str, case: str, way: Callable[..., tuple], inputs: Inputs, exact: tuple) -> dict[str, float]:
    results = way(*inputs)
    error = max(float((r.double() - t).norm() / t.norm()) for r, t in zip(results, exact, strict=True))
    if not error < _TOLERANCES[inputs[0].dtype]:
        raise ArithmeticError(f"{case}, {name}: relative error {error:.1e} against float64; its time means nothing.")
    memory = peak_memory(lambda: way(*inputs), inputs[0].device.type)
    return {"error": error, "extra_mb": memory / 1e6}


def _cycling(way: Callable[..., object], inputs: list[Inputs]) -> Callable[[], object]:
    turns = itertools.cycle(inputs)
    return lambda: way(*next(turns))
