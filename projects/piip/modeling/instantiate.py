"""From the nodes of a config to a model, after a look at whether they can be one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from torch import nn

from ..errors import ConfigError, did_you_mean

__all__ = ["instantiate_model"]


def instantiate_model(node: Any) -> nn.Module:
    """Instantiates the ``model`` section of a config, or a node of it.

    Raises:
        ConfigError: when a ``_target_`` does not exist, does not take the arguments beside it or lacks one, when a text
            is given for a flag, or when a value was left open.
    """
    _check(OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node, "")
    try:
        return instantiate(node)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; set it in the config or as {error.full_key}=...") from error


def _check(node: Any, path: str) -> None:
    """Looks at a node and all below it."""
    if isinstance(node, Mapping):
        children = node.items()
        if "_target_" in node:
            _check_call(node, path.removesuffix("."))
    else:
        children = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in children:
        _check(child, f"{path}{key}.")


def _check_call(node: Mapping[str, Any], path: str) -> None:
    target = node["_target_"]
    where = f"_target_ of {path}" if path else "_target_"
    if isinstance(target, str):
        if "${" in target or target == "???":
            return
        target = _locate(target, where)
    if not callable(target):
        raise ConfigError(f"{where}: {target!r} cannot be called; it must be a class or a function.")
    try:
        signature = inspect.signature(target)
    except ValueError:  # of some builtins nobody knows
        return
    names = [key for key in node if key != "_target_"]
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        unknown = [name for name in names if name not in signature.parameters]
        hint = did_you_mean(unknown[0], signature.parameters) if unknown else ""
        raise ConfigError(f"{where}, {getattr(target, '__name__', target)}: {error}.{hint}") from error
    for name in names:
        # Such as `no` on a command line, which is a text there, and would count as true.
        flag = name in signature.parameters and signature.parameters[name].annotation in (bool, "bool")
        if flag and isinstance(node[name], str) and "${" not in node[name] and node[name] != "???":
            raise ConfigError(f"{f'{path}.{name}'.lstrip('.')}={node[name]!r} must be true or false.")


def _locate(name: str, where: str) -> Any:
    try:
        return locate(name)
    except Exception as error:  # it raises whatever the import of a wrong name does
        module, _, attribute = name.rpartition(".")
        try:
            there = [n for n in vars(importlib.import_module(module)) if not n.startswith("_")]
        except ImportError:
            raise ConfigError(f"{where}: {name!r} cannot be imported ({error}); check its spelling.") from error
        raise ConfigError(f"{where}: there is no {attribute!r} in {module}.{did_you_mean(attribute, there)}") from error
