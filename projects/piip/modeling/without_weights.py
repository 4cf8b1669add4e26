"""Building models without memory for their weights, to count them or to load them part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from .instantiate import instantiate_model

__all__ = ["build_on_meta", "build_without_weights", "on_meta", "without_weights"]


def build_on_meta(model: Any) -> nn.Module:
    """Instantiates the ``model`` section of a config, or a node of it, with all tensors on the meta device.

    Raises:
        ConfigError: for a node that cannot be instantiated.
    """
    with on_meta():
        return instantiate_model(model)


def build_without_weights(model: Any) -> nn.Module:
    """The same with only the parameters on the meta device: buffers, which no checkpoint may hold, have their values.

    :func:`piip.checkpoint.load_weights` gives the parameters their memory.

    Raises:
        ConfigError: for a node that cannot be instantiated.
    """
    with without_weights():
        return instantiate_model(model)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Modules that are built meanwhile have all tensors on the meta device, and none is filled."""
    with torch.device("meta"), _WithoutValues():
        yield


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built meanwhile have their parameters on the meta device: they lose memory when they are taken.

    :func:`piip.checkpoint.load_weights` and :func:`~piip.checkpoint.load_official` give it back.
    """

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a parameter that two modules share stays shared
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)
    try:
        with _WithoutValues():
            yield
    finally:
        handle.remove()


class _WithoutValues(TorchFunctionMode):
    """Leaves out what only fills meta tensors with values: nothing comes of it, and it takes most of the time."""

    # Methods of tensors, and at the end functions of torch.nn.init that torch would run without this mode (there,
    # uniform_ and normal_ are such functions, too).
    _FILLING = frozenset(
        (
            *("add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"),
            *("constant_", "kaiming_uniform_"),
        )
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._FILLING:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)
