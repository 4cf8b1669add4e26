"""Which kernels an operator runs on: the fastest that take its tensors, or those that ``PIIP_KERNELS`` names."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType

from torch import Tensor

from ...errors import ConfigError

__all__ = ["OPERATORS", "backends", "choose", "in_use", "log_once"]

logger = logging.getLogger(__name__)

# How operators are called in messages.
OPERATORS = {"ska": "SKA", "deform_attn": "deformable attention"}
# Preferred ones first; plain PyTorch is always there.
_BY_DEVICE = {"cpu": ("cpp", "eager"), "cuda": ("triton", "eager")}
_SETTINGS = ("auto", "eager", "cpp", "triton")


@functools.cache
def backends(operator: str, device_type: str) -> dict[str, ModuleType]:
    """What may run an operator on a kind of device, by name, preferred ones first.

    See :mod:`piip.layers.kernels` for what these modules have.
    """
    names = _BY_DEVICE.get(device_type, ("eager",))
    return {name: _module(operator, name) for name in names if _installed(name)}


def choose(operator: str, *inputs: Tensor | tuple[int, ...]) -> ModuleType:
    """The module that computes the operator of these inputs, the first of which says the device.

    Raises:
        ConfigError: when ``PIIP_KERNELS`` is not a setting, or names kernels that cannot take these inputs.
    """
    if (setting := _setting()) != "auto":
        if (reason := _missing(operator, setting) or _module(operator, setting).obstacle(*inputs)) is not None:
            raise ConfigError(
                f"PIIP_KERNELS is {setting!r}, but these kernels cannot be used for {OPERATORS[operator]}: {reason}; "
                "set it to 'auto', or unset it."
            )
        return _module(operator, setting)
    for name, module in backends(operator, inputs[0].device.type).items():
        if (reason := module.missing() or module.obstacle(*inputs)) is None:
            return module
        log_once(f"{OPERATORS[operator]}: slower kernels than {name} are used: {reason}.")
    raise AssertionError("plain PyTorch takes everything")


def in_use(operator: str, device_type: str) -> str:
    """The name of the kernels that an operator runs on there, and why not on faster ones; builds C++ where it can.

    Raises:
        ConfigError: when ``PIIP_KERNELS`` is not a setting, or names kernels that this machine cannot use.
    """
    names = _BY_DEVICE[device_type]
    if (setting := _setting()) != "auto":
        reason = _missing(operator, setting)
        if reason is None and setting not in names:
            reason = f"they are not for {device_type} tensors"
        if reason is not None:
            raise ConfigError(f"PIIP_KERNELS is {setting!r}, but {reason}; set it to 'auto', or unset it.")
        return f"{setting} (PIIP_KERNELS)"
    reasons = []
    for name in names:
        if (reason := _missing(operator, name)) is None:
            return f"{name} ({'; '.join(reasons)})" if reasons else name
        reasons.append(f"no {name}: {reason}")
    raise AssertionError("plain PyTorch is always there")


@functools.cache
def log_once(message: str) -> None:
    """Logs what a user should know but not read at every call."""
    logger.info(message)


def _setting() -> str:
    setting = os.environ.get("PIIP_KERNELS", "auto")
    if setting not in _SETTINGS:
        raise ConfigError(
            f"PIIP_KERNELS is {setting!r}; set it to {', '.join(map(repr, _SETTINGS[:-1]))} or {_SETTINGS[-1]!r}, or "
            "unset it."
        )
    return setting


def _missing(operator: str, name: str) -> str | None:
    return _module(operator, name).missing() if _installed(name) else "Triton is not installed"


@functools.cache
def _installed(name: str) -> bool:
    return name != "triton" or importlib.util.find_spec("triton") is not None


def _module(operator: str, name: str) -> ModuleType:
    # Imported when asked for: importing Triton takes time.
    return importlib.import_module(f"{__package__}.{operator}_{name}")
