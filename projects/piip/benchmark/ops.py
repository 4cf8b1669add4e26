"""Operators at the shapes of our models: every backend beside the form that lays everything out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..layers import deform_attn_reference, ska, ska_reference
from ..layers.deform_attn import reference_points, starting_offsets
from ..layers.kernels import ska_eager
from ..layers.kernels.choice import backends
from .records import Row, environment
from .timing import Settings, in_turns, peak_memory, recorded

__all__ = ["CASES", "DeformAttnCase", "NormedCase", "OpCase"]

# Relative error in the L2 norm that a row may have against float64.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Inputs that a GPU cycles through, so that none is still in its cache.
_GPU_BYTES = 256 * 2**20

Inputs = tuple[Tensor, ...]  # the last one is the gradient of the output
Way = tuple[Callable[..., tuple[Tensor, ...]], list[Inputs]]


@dataclass(frozen=True)
class OpCase:
    """SKA of one size.

    Attributes:
        size: height and width.
        channels: of x; there are an eighth as many weight channels.
        batch: images.
        backward: whether gradients are computed, too.
        device: where alone it is measured; None for anywhere.
    """

    size: tuple[int, int]
    channels: int
    batch: int
    backward: bool
    device: str | None = None

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
        inputs = _several(self._inputs, settings)
        ways = {"unfold": (partial(_plain, ska_reference, self.backward), inputs)}
        for name, module in backends("ska", settings.device).items():
            for order, given in {name: inputs, f"{name}, channels last": _channels_last(inputs)}.items():
                if (module.missing() or module.obstacle(*given[0][:2])) is None:
                    ways[order] = partial(_backend, module, self.backward), given
        exact = _plain(ska_reference, self.backward, *(t.double() for t in inputs[0]))
        return _rows(self.name, ways, exact, settings)

    def _inputs(self, settings: Settings) -> Inputs:
        b, c, size = self.batch, self.channels, self.size
        shapes = (b, c, *size), (b, c // 8, 9, *size), (b, c, *size)
        return tuple(torch.randn(s, device=settings.device).to(settings.dtype) for s in shapes)


class NormedCase(OpCase):
    """SKA with the norms and the residual connection of LS convolution, in inference."""

    @property
    def name(self) -> str:
        return super().name.replace("SKA", "SKA with norms")

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the operators one by one, SKA on the fastest kernels, and of all backends' operator for all of them.

        Raises:
            ArithmeticError: when a result is wrong.
        """
        inputs = _several(self._inputs, settings)
        j = self.channels // 8
        norms = [torch.rand(9 * j), torch.rand(9 * j), *(torch.rand(self.channels) for _ in range(4))]
        norms = [(t + 0.5).to(settings.device, settings.dtype) for t in norms]

        def run(forward_normed: Callable[..., Tensor], x: Tensor, w: Tensor, _: Tensor) -> tuple[Tensor]:
            return (forward_normed(x, w, [t.to(x.dtype) for t in norms], (1e-5, 1e-5)),)

        one_by_one = partial(ska_eager.forward_normed, aggregate=ska)
        ways = {"one by one": (partial(run, one_by_one), inputs)}
        ways["one by one, channels last"] = partial(run, one_by_one), _channels_last(inputs)
        for name, module in backends("ska", settings.device).items():
            for order, given in {
                name: inputs,
                f"{name}, channels last": _channels_last(inputs, taps_first=True),
            }.items():
                if (module.missing() or module.obstacle(*given[0][:2])) is None:
                    ways[order] = partial(run, module.forward_normed), given
        (exact,) = run(one_by_one, *(t.double() for t in inputs[0]))
        return _rows(self.name, ways, (exact,), settings)


@dataclass(frozen=True)
class DeformAttnCase:
    """Deformable attention from one branch of PIIP to another: one image and level, 16 heads, 4 points.

    Attributes:
        label: who looks at whom.
        queries, cells: tokens per side of the branch that looks and of the one that is looked at.
        dim: channels per head.
        backward: whether gradients are computed, too.
    """

    label: str
    queries: int
    cells: int
    dim: int
    backward: bool

    heads, points = 16, 4

    @property
    def name(self) -> str:
        what = "forward + backward" if self.backward else "forward"
        return f"deformable attention {self.label} {self.queries}^2 <- {self.cells}^2 D{self.dim} {what}"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.label in ("B<-S", "T<-S")

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of grid_sample, all backends, and a copy of the values for scale.

        Raises:
            ArithmeticError: when a result is wrong.
        """
        inputs, sizes = _several(self._inputs, settings), [self.cells, self.cells]

        def reference(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return deform_attn_reference(value, [(self.cells, self.cells)], locations, weights)

        ways = {"grid_sample": (partial(_plain, reference, self.backward), inputs)}
        for name, module in backends("deform_attn", settings.device).items():
            if (module.missing() or module.obstacle(*inputs[0][:3], sizes)) is None:
                ways[name] = partial(_backend, module, self.backward, sizes=sizes), inputs
        exact = _plain(reference, self.backward, *(t.double() for t in inputs[0]))
        return _rows(self.name, ways, exact, settings)

    def _inputs(self, settings: Settings) -> Inputs:
        centres = reference_points((self.queries, self.queries), torch.device("cpu")).view(1, -1, 1, 1, 1, 2)
        offsets = starting_offsets(self.heads, 1, self.points)
        noise = torch.randn(1, self.queries**2, *offsets.shape) / 2
        places = centres * self.cells + offsets + noise
        # Between cells gradients jump, and rounding decides which one they have.
        places = (places - 0.5).floor() + 0.5 + 0.02 + 0.96 * (places - 0.5).frac().abs()
        weights = torch.randn(places.shape[:-1]).flatten(-2).softmax(-1).view(places.shape[:-1])
        value = torch.randn(1, self.cells**2, self.heads, self.dim)
        grad = torch.randn(1, self.queries**2, self.heads * self.dim)
        inputs = value.to(settings.dtype), places / self.cells, weights, grad.to(settings.dtype)
        return tuple(t.to(settings.device) for t in inputs)


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
CASES += [
    OpCase(size, channels, 256, backward, device="cuda") for backward in (False, True) for size, channels in _LSNET_B
]
CASES += [NormedCase(size, channels, batch, backward=False) for size, channels in _LSNET_B for batch in (1, 8)]
CASES += [NormedCase(size, channels, 256, backward=False, device="cuda") for size, channels in _LSNET_B]
CASES += [
    DeformAttnCase(*shape, backward)  # PIIP-TSB at 1568, 1120 and 672 pixels
    for backward in (False, True)
    for shape in [("B<-S", 42, 70, 24), ("S<-B", 70, 42, 12), ("S<-T", 70, 98, 12), ("T<-S", 98, 70, 6)]
]


def _rows(case: str, ways: Mapping[str, Way], exact: tuple[Tensor, ...], settings: Settings) -> list[Row]:
    """Checks all ways and times them, and a copy of their first input; on a GPU without what launching takes."""
    numbers = {name: _checked(name, case, way, given[0], exact) for name, (way, given) in ways.items()}
    _, inputs = next(iter(ways.values()))
    scale = "copy of x" if len(inputs[0]) == 3 else "copy of value"
    ways = {**ways, scale: (lambda x, *_: x.clone(), inputs)}
    numbers[scale] = {"moved_mb": 2 * inputs[0][0].nbytes / 1e6}
    runs = {name: partial(_all, way, given) for name, (way, given) in ways.items()}
    if settings.device == "cuda":
        runs = {name: recorded(run) for name, run in runs.items()}
    turns, calls = in_turns(runs, settings), len(inputs)
    about = environment(settings)
    return [
        Row("ops", case, name, t.median / calls, t.minimum / calls, t.spread, t.ratio, numbers[name], about)
        for name, t in turns.items()
    ]


def _several(make: Callable[[Settings], Inputs], settings: Settings) -> list[Inputs]:
    """Inputs, on a GPU as many as its cache cannot hold."""
    torch.manual_seed(0)
    inputs = [make(settings)]
    if settings.device != "cpu":
        size = sum(t.nbytes for t in inputs[0])
        inputs += [make(settings) for _ in range(_GPU_BYTES // size)]
    return inputs


def _plain(function: Callable[..., Tensor], backward: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What autograd makes of the reference."""
    *inputs, grad = inputs
    if not backward:
        return (function(*inputs),)
    inputs = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def _backend(module: ModuleType, backward: bool, *inputs: Tensor, **sizes: list[int]) -> tuple[Tensor, ...]:
    *inputs, grad = inputs
    out = module.forward(*inputs, **sizes)
    return (out, *module.backward(grad, *inputs, **sizes)) if backward else (out,)


def _channels_last(inputs: list[Inputs], taps_first: bool = False) -> list[Inputs]:
    """As convolutions of channels-last memory write them; weight channels after taps, or before them."""
    last = torch.channels_last

    def weights(w: Tensor) -> Tensor:
        w = w.transpose(1, 2) if taps_first else w
        flat = w.flatten(1, 2).contiguous(memory_format=last).unflatten(1, w.shape[1:3])
        return flat.transpose(1, 2) if taps_first else flat

    return [
        (x.contiguous(memory_format=last), weights(w), grad.contiguous(memory_format=last)) for x, w, grad in inputs
    ]


def _checked(name: str, case: str, way: Callable[..., tuple], inputs: Inputs, exact: tuple) -> dict[str, float]:
    results = way(*inputs)
    error = max(float((r.double() - t).norm() / t.norm()) for r, t in zip(results, exact, strict=True))
    if not error < _TOLERANCES[inputs[0].dtype]:
        raise ArithmeticError(f"{case}, {name}: relative error {error:.1e} against float64; its time means nothing.")
    memory = peak_memory(lambda: way(*inputs), inputs[0].device.type)
    # What has to be read and written: inputs and output; then inputs, gradient of the output, and their gradients.
    moved = [*inputs[:-1], results[0]] + ([*inputs, *results[1:]] if len(results) > 1 else [])
    return {"error": error, "extra_mb": memory / 1e6, "moved_mb": sum(t.nbytes for t in moved) / 1e6}


def _all(way: Callable[..., object], inputs: list[Inputs]) -> list[object]:
    """A call with each of the inputs; what they gave stays until the end, so that it takes other memory each time."""
    return [way(*given) for given in inputs]
