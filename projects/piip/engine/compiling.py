"""``torch.compile`` for the network of a model: names and checkpoints stay what they are."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from ..errors import ConfigError, DependencyError, did_you_mean
from ..layers.kernels.cpu_library import find_compiler
from ..modeling.parts import network_parts

__all__ = ["MODES", "check_compile", "compile_network"]

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_WITH_GRAPHS = ("reduce-overhead", "max-autotune")

# Padded batches come in a limited number of sizes, but in more than the 8 after which torch gives up.
_SIZES = 64


def check_compile(name: str, value: bool | str | None) -> None:
    """Refuses what is no truth value, None or mode of ``torch.compile``; ``name`` is what it is called."""
    if value is not None and not isinstance(value, bool) and value not in MODES:
        hint = did_you_mean(str(value), MODES)
        raise ConfigError(f"{name}={value!r} must be true, false or one of {', '.join(MODES)}.{hint}")


def compile_network(model: nn.Module, mode: bool | str | None, backend: str = "inductor") -> list[nn.Module]:
    """Lets ``torch.compile`` run the backbone of a detector or segmentor, or the network of a classifier, in place.

    Of a pyramid of branches, blocks, interactions, merging and neck are compiled one by one: blocks of one branch share
    their code, so that a network of 36 blocks takes as long as one of three. Modes with CUDA graphs take the network as
    a whole, which leaves a single launch per image, and take as much longer. Other networks, LSNet among them, are
    compiled as a whole.

    Branches and pyramids are compiled for every size that comes, up to 64, as symbols in place of the sizes of windows
    and resized copies make formulas that take minutes; padding to multiples (``size_divisibility``) keeps sizes few.
    Other networks are compiled for any size when the second one comes.

    Args:
        model: with a ``backbone`` or ``network``; on its device, not yet wrapped.
        mode: True, or a mode of ``torch.compile``; None and False change nothing.
        backend: what compiles, by torch's name for it.

    Returns:
        what was compiled.

    Raises:
        ConfigError: for an unknown mode, or a model without backbone and network.
        DependencyError: when ``backend`` lacks what it compiles with.
    """
    check_compile("compile", mode)
    if not mode:
        return []
    network = getattr(model, "backbone", getattr(model, "network", None))
    if not isinstance(network, nn.Module):
        raise ConfigError(f"compile={mode}: a {type(model).__name__} has no backbone or network to compile.")
    if backend == "inductor":
        _check_compiler(next(network.parameters()).device.type)
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, _SIZES)  # newer versions of torch have two names for it
    parts = network_parts(network)
    chosen = [network] if mode in _WITH_GRAPHS or not parts else parts
    for part in chosen:
        part.compile(mode=None if mode is True else mode, dynamic=False if parts else None, backend=backend)
    return chosen


def _check_compiler(device_type: str) -> None:
    if device_type == "cpu" and find_compiler() is None:
        raise DependencyError(
            "torch.compile needs a C++ compiler on a CPU, and there is none (CXX, g++, clang++); install one, or turn "
            "compilation off."
        )
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        raise DependencyError(
            "torch.compile needs Triton on a GPU, and it is not installed; run `pip install triton`, or turn "
            "compilation off."
        )
