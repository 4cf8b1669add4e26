"""Networks in several forms: their outputs are compared, their cost is counted, then they run in turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..analysis import analyze
from ..analysis.launches import launches
from .records import Row, environment
from .timing import Settings, in_turns, run_once

__all__ = ["Form", "check", "compiled", "gmacs", "measure_forms", "relative_error", "with_same_weights"]

# Relative error in the L2 norm between two forms of one network.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@dataclass(frozen=True)
class Form:
    """A way to run a network.

    Attributes:
        run: takes the image.
        image: (B, 3, H, W).
        network: what is counted instead of ``run``, which computes as much.
        like: name of another form whose outputs these must be.
        compile_s: seconds that torch.compile took, if it made ``run``.
    """

    run: nn.Module
    image: Tensor
    network: nn.Module | None = None
    like: str | None = None
    compile_s: float | None = None


def measure_forms(suite: str, case: str, forms: Mapping[str, Form], settings: Settings) -> list[Row]:
    """A row for every form: times of inference, multiply-adds of an image, launches, images per second and peak memory.

    Raises:
        ArithmeticError: when a form's outputs are not those of the form that it should be like.
    """
    results, numbers, first, counted = {}, {}, {}, {}
    with torch.inference_mode():
        for name, form in forms.items():
            once = run_once(lambda form=form: form.run(form.image), settings)
            results[name], first[name] = once.result, once.ms
            # A graph took its memory when it was recorded.
            numbers[name] = {} if name.endswith("CUDA graphs") else {"peak_mb": once.peak / 1e6}
            if form.like is not None:
                numbers[name]["error"] = check(f"{case}, {name}", results[name], results[form.like])
        del results, once
        for name, form in forms.items():
            key = network, _ = form.network or form.run, form.image.shape[2:]
            if key not in counted:
                counted[key] = gmacs(network, form.image)
            numbers[name]["gmacs"] = counted[key]
            if form.compile_s is None:
                numbers[name]["launches"] = launches(form.run, form.image).total()
            else:
                numbers[name]["compile_s"] = form.compile_s
        ways = {name: lambda form=form: form.run(form.image) for name, form in forms.items()}
        turns = in_turns(ways, settings, first)
    about = environment(settings)
    return [
        Row(
            suite,
            case,
            name,
            *turn.values,
            numbers={"images_per_s": len(forms[name].image) * 1000 / turn.median, **numbers[name]},
            environment=about,
        )
        for name, turn in turns.items()
    ]


def compiled(network: nn.Module, image: Tensor, like: str, mode: bool | str = True) -> Form:
    """A copy that torch.compile has made faster, as the package does it; its first call, which takes long, is over."""
    from ..engine.compiling import compile_network

    fast = copy.deepcopy(network)
    start = time.perf_counter()
    compile_network(nn.ModuleDict({"network": fast}), mode)
    with torch.inference_mode():
        fast(image)
    return Form(fast, image, network, like, time.perf_counter() - start)


def gmacs(network: nn.Module, image: Tensor) -> float:
    """Billions of multiply-adds for one image of this size, by one counter for all networks."""
    return analyze(network, tuple(image.shape[2:])).total.macs / 1e9


def check(name: str, result: object, expected: object) -> float:
    """The relative error in the L2 norm, the largest one of several outputs.

    Raises:
        ArithmeticError: when it is too large for the dtype.
    """
    error = max(relative_error(a, b) for a, b in zip(tree_leaves(result), tree_leaves(expected), strict=True))
    if not error < TOLERANCES[tree_leaves(result)[0].dtype]:
        raise ArithmeticError(f"{name}: differs from the plain form by {error:.1e}; its time means nothing.")
    return error


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Distance in the L2 norm, relative to what was expected."""
    return float((result - expected).float().norm() / expected.float().norm())


def with_same_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
