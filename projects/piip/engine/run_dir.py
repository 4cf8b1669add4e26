"""The folder of a training: what is in it, making room for a new one, and small files written whole."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import LazyConfig
from detectron2.utils import comm
from omegaconf import DictConfig

from ..checkpoint.files import write_atomically
from ..errors import CheckpointError, ConfigError

__all__ = [
    "claim",
    "read_json",
    "remembered_seed",
    "remove_torn_files",
    "save_config",
    "set_earlier_run_aside",
    "write_json",
]

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
_SOURCE = "config_source.py"
_OWNER = "owner.txt"
_SECONDS_TO_APPEAR = 30.0  # network file systems show the files of other machines late
# `last_checkpoint` goes first: without it nothing is resumed from, so a kill in between does no harm.
_LEFT_BY_A_RUN = (
    "last_checkpoint", "model_*.pth", "model_[0-9]*", "model_final", "model_best", "metrics.json", "eval.json",
    "summary.json", f"{CONFIG}*", _SOURCE, "events.out.tfevents.*", "report", "inference",
)  # fmt: skip


def set_earlier_run_aside(output_dir: str) -> Path | None:
    """Moves the files of an earlier training into ``<output_dir>/previous/<number>``.

    A training that does not resume starts from nothing: it neither continues, overwrites nor mixes with another one.
    The log stays, since it is being written; like Detectron2's it holds one training after the other.

    Returns:
        the folder they went to; None when there were none.
    """
    root = Path(output_dir)
    if not any(root.joinpath(name).exists() for name in ("last_checkpoint", "metrics.json", "summary.json")):
        return None
    taken = [int(p.name) for p in root.glob("previous/*") if p.name.isdigit()]
    target = root / "previous" / str(max(taken, default=0) + 1)
    target.mkdir(parents=True)
    for pattern in _LEFT_BY_A_RUN:
        for path in root.glob(pattern):
            path.rename(target / path.name)
    return target


def claim(output_dir: str) -> Callable[[], None]:
    """Makes the folder that of this training; all processes must call it together.

    A training whose machine was given up for lost, or that somebody started twice, may still run beside its
    successor. Whoever claimed the folder last owns it.

    Returns:
        to be called before anything is saved; it raises :class:`CheckpointError` when another training has claimed
        the folder meanwhile.

    Raises:
        ConfigError: when a process does not see what the main process wrote there.
    """
    path = Path(output_dir, _OWNER)
    me = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
    owner = comm.all_gather(me)[0]
    if comm.is_main_process():
        write_atomically(path, lambda f: f.write(owner.encode()))
    comm.synchronize()
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not (sees := _read(path) == owner) and time.monotonic() < deadline:
        time.sleep(0.5)
    if blind := [name for name, ok in comm.all_gather((me, sees)) if not ok]:
        raise ConfigError(
            f"train.output_dir={output_dir!r} is not shared by the machines of this training: {', '.join(blind)} "
            f"cannot read what {owner} wrote there; choose a folder on a file system that all of them have."
        )

    def check() -> None:
        if (now := _read(path)) != owner:
            raise CheckpointError(
                f"folder {output_dir!r} now belongs to another training, {now or 'unknown'}; this one, {owner}, ends "
                "without saving. Train in different folders with train.output_dir."
            )

    return check


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def remove_torn_files(output_dir: str) -> None:
    """Removes temporary files that a killed training did not finish; ``write_atomically`` names them."""
    for name in (*_LEFT_BY_A_RUN, _OWNER):
        for path in Path(output_dir).glob(f".{name.rstrip('*')}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def save_config(cfg: DictConfig, source: str, output_dir: str) -> None:
    """Writes the config as it is used to ``config.yaml``, and the file that it came from beside it.

    What YAML cannot hold, such as functions without a name in a config of somebody else, Detectron2 saves as
    ``config.yaml.pkl``, with a warning.
    """
    root = Path(output_dir)
    LazyConfig.save(cfg, str(root / f".{CONFIG}"))
    for name in (CONFIG, f"{CONFIG}.pkl"):
        if (root / f".{name}").exists():
            os.replace(root / f".{name}", root / name)
    if source.endswith(".py"):
        shutil.copyfile(source, root / f".{_SOURCE}")
        os.replace(root / f".{_SOURCE}", root / _SOURCE)


def remembered_seed(output_dir: str) -> int | None:
    """The seed in the ``config.yaml`` that an earlier session of a training left."""
    path = Path(output_dir, CONFIG)
    if not path.is_file():
        return None
    try:
        return LazyConfig.load(str(path)).train.get("seed")
    except Exception as error:
        logger.warning("%s cannot be read (%s), so the seed of the earlier session is not known.", path, error)
        return None


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON, with null for numbers that JSON does not know."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda f: f.write(text.encode()))


def read_json(path: str | os.PathLike) -> Any:
    """What :func:`write_json` wrote, with NaN for null; None where there is no such file, or it cannot be read."""
    try:
        return json.loads(Path(path).read_text(), object_hook=_with_nan)
    except (OSError, ValueError):
        return None


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
