"""Packaged configs and models for several tests, each made once in a process; nobody may change them."""

from __future__ import annotations

from functools import cache

from omegaconf import DictConfig
from torch import nn

from piip.model_zoo import get_config
from piip.modeling.without_weights import build_on_meta


@cache
def packaged(config: str) -> DictConfig:
    """A config by its whole name."""
    return get_config(config)


@cache
def on_meta(config: str) -> nn.Module:
    """Its model on the meta device."""
    return build_on_meta(packaged(config).model)
