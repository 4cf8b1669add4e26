"""Finding packaged configs and building their models."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from torch import nn

from ..errors import ConfigError, did_you_mean

__all__ = ["config_file", "get", "get_config", "list_configs", "published"]

_CONFIGS = Path(__file__).parent.parent / "configs"
_TABLE = Path(__file__).parent / "published.csv"


def list_configs() -> list[str]:
    """Names of all packaged configs, sorted."""
    names = (path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.glob("*/**/*.py"))
    return sorted(name for name in names if not name.startswith("common/"))


def config_file(name: str) -> str:
    """The file of a config.

    Args:
        name: path of a file, or name of a packaged config with or without ``.py``.

    Raises:
        ConfigError: when there is neither, with the nearest names.
    """
    if Path(name).is_file():
        return str(name)
    packaged = name if name.endswith((".py", ".yaml")) else f"{name}.py"
    packaged = packaged.removeprefix("configs/")
    if packaged in list_configs():
        return str(_CONFIGS / packaged)
    hint = did_you_mean(packaged, list_configs()) or " piip.model_zoo.list_configs() lists the packaged ones."
    raise ConfigError(f"config {name!r} is neither a file nor a packaged config.{hint}")


def get_config(name: str):
    """Loads a config.

    Args:
        name: as in :func:`config_file`.

    Returns:
        an omegaconf ``DictConfig`` with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.

    Raises:
        ConfigError: for an unknown name.
    """
    from detectron2.config import LazyConfig

    return LazyConfig.load(config_file(name))


@cache
def published() -> dict[str, dict[str, str]]:
    """The published models: config name -> columns of the table, as text (empty where nothing was published)."""
    with _TABLE.open(newline="") as f:
        return {row["config"]: row for row in csv.DictReader(f)}


def get(name: str, trained: bool = False) -> nn.Module:
    """Builds the model of a config.

    Args:
        name: as in :func:`config_file`.
        trained: load the released weights; downloads them on first use. Otherwise the weights are random.

    Returns:
        the model in training mode, on the CPU.

    Raises:
        ConfigError: for an unknown name, or where no weights were released.
        DownloadError: when the weights cannot be fetched.
    """
    from detectron2.config import instantiate

    from ..checkpoint import load_weights

    checkpoint = ""
    if trained:
        checkpoint = published().get(name, {}).get("checkpoint", "")
        if not checkpoint:
            raise ConfigError(f"no weights were released for {name!r}; get it with trained=False.")
    model = instantiate(get_config(name).model)
    if checkpoint:
        load_weights(model, checkpoint)
    return model
