"""Finding packaged configs and building their models."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import load_weights
from ..engine.build import build_model
from ..engine.config import config_root, find_config, load_config
from ..errors import ConfigError
from ..modeling import SingleBranch
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.without_weights import build_without_weights

__all__ = ["get", "get_config", "list_configs", "network_of", "published", "published_row"]

_TABLE = Path(__file__).parent / "published.csv"


def list_configs() -> list[str]:
    """Names of all packaged configs, sorted."""
    root = config_root()
    names = (path.relative_to(root).as_posix() for path in root.glob("*/**/*.py"))
    return sorted(name for name in names if not name.startswith("common/"))


def get_config(name: str) -> DictConfig:
    """Loads a config.

    Args:
        name: name of a packaged config, with or without folder and ``.py``, path of a file, or the name that its
            authors gave a published model.

    Returns:
        the config with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.

    Raises:
        ConfigError: for an unknown name, with the nearest ones.
    """
    return load_config(_config_name(name))


@cache
def published() -> dict[str, dict[str, str]]:
    """The published models: config name -> columns of the table, as text (empty where nothing was published)."""
    with _TABLE.open(newline="") as f:
        return {row["config"]: row for row in csv.DictReader(f)}


def published_row(name: str) -> dict[str, str] | None:
    """The row of :func:`published` for any name that :func:`get_config` takes; None where there is none."""
    path = Path(find_config(_config_name(name))).resolve()
    root = config_root().resolve()
    return published().get(path.relative_to(root).as_posix()) if path.is_relative_to(root) else None


def _config_name(name: str) -> str:
    """The config of a published model by its authors' name; any other name as it is."""
    return next((config for config, row in published().items() if row["name"] == name), name)


def network_of(model: DictConfig) -> DictConfig:
    """The part of a config's ``model`` that is PIIP, LSNet or a baseline: a classifier, or a backbone without FPN."""
    if "backbone" not in model:
        return model.network
    return model.backbone.get("bottom_up", model.backbone)


def get(
    name: str, trained: bool = False, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> nn.Module:
    """Builds the model of a config.

    Trained weights go from the file straight to their place, so that the largest models take no more memory than
    their weights; it is an error at once when there is less.

    Args:
        name: as in :func:`get_config`.
        trained: load the released weights; downloads them on first use. Otherwise the weights are random.
        device: where the model shall be.
        dtype: type of the backbone's weights, ``"bfloat16"`` for half the memory; inputs, outputs, and a detector's
            heads stay in float32. By default all is float32.

    Returns:
        the model in training mode.

    Raises:
        ConfigError: for an unknown name or type, for a type of a network without one, or where no weights were
            released.
        CheckpointError: when the memory is too small for the weights.
        DownloadError: when the weights cannot be fetched.
    """
    if isinstance(dtype, str):
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype={dtype!r} is unknown; use float32, bfloat16 or float16.")
        dtype = getattr(torch, dtype)
    checkpoint = ""
    if trained:
        checkpoint = (published_row(name) or {}).get("checkpoint", "")
        if not checkpoint:
            raise ConfigError(f"no weights were released for {name!r}; get it with trained=False.")
    node = get_config(name).model
    model = build_without_weights(node) if checkpoint else build_model(node, torch.device(device))
    if dtype is not None:
        networks = [module for module in model.modules() if isinstance(module, BranchPyramid | SingleBranch)]
        if not networks:
            raise ConfigError(
                f"dtype={dtype} is for PIIP and single branches, and {name!r} has none; use torch.autocast instead."
            )
        for network in networks:
            network.to(dtype)
    if checkpoint:
        load_weights(model, checkpoint, device)
    return model.to(device)
