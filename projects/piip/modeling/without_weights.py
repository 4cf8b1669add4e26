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

__all__ = ["build_on_meta", "build_without_weights"]


def build_on_meta(model: Any) -> nn.Module:
    """Instantiates the ``model`` section of a config, or a node of it, with all tensors on the meta device.

    Raises:
        ConfigError: for a node that cannot be instantiated.
    """
    with torch.device("meta"), _WithoutValues():
        return instantiate_model(model)


def build_without_weights(model: Any) -> nn.Module:
    """The same with only the parameters on the meta device: buffers, which no checkpoint may hold, have their values.

    :func:`piip.checkpoint.load_weights` gives the parameters their memory.

    Raises:
        ConfigError: for a node that cannot be instantiated.
    """
    with _parameters_on_meta(), _WithoutValues():
        return instantiate_model(model)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter loses its memory when a module takes it."""

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a parameter that two modules share stays shared
            return parameter
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _WithoutValues(TorchFunctionMode):
    """Leaves out what only fills meta tensors with values: nothing comes of it, and it takes most of the time."""

    # Methods of tensors, and those functions of torch.nn.init that would run without this mode.
    _FILLING = frozenset(
        ["add_", "clamp_", "constant_", "copy_", "div_", "erfinv_", "fill_", "kaiming_uniform_", "mul_", "normal_"]
        + ["uniform_", "zero_"]
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
