"""Rows of measurements: files of JSON lines, and their comparison."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from ..errors import DataError
from .timing import Settings

__all__ = ["Row", "append", "compare", "environment", "read"]


@dataclass(frozen=True)
class Row:
    """One way to compute one thing.

    Attributes:
        suite, case, name: which measurements belong together, what was computed, and how.
        ms, min_ms, spread, ratio: see :class:`~.timing.Timing`; the ratio is to the first row of the case.
        numbers: what else was measured.
        environment: see :func:`environment`.
    """

    suite: str
    case: str
    name: str
    ms: float
    min_ms: float
    spread: float
    ratio: float
    numbers: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """Rows with the same key may be compared."""
        shown = (str(self.environment.get(name)) for name in ("device", "dtype", "threads"))
        return self.suite, self.case, self.name, *shown


def environment(settings: Settings) -> dict[str, Any]:
    """What times depend on."""
    cuda = settings.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "clock": settings.clock,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
    }


def append(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Adds rows to a file, one JSON object per line; one write, so that rows of several processes do not mix."""
    with open(path, "a") as file:
        file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def read(path: str | os.PathLike) -> list[Row]:
    """What :func:`append` wrote.

    Raises:
        DataError: when the file is missing or is none of these.
    """
    try:
        return [Row(**json.loads(line)) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a file that --output wrote: {error}") from error


def compare(old: Iterable[Row], new: Iterable[Row], tolerance: float = 0.1) -> list[str]:
    """Rows whose ratio to the first row of their case fell by more than the tolerance, in words.

    Of rows with equal keys the latest counts. Ratios only: times differ between machines.
    """
    before = {row.key: row for row in old}
    now = {row.key: row for row in new}
    return [
        f"{row.case}, {row.name}: {before[key].ratio:.2f}x -> {row.ratio:.2f}x"
        for key, row in now.items()
        if key in before and row.ratio < (1 - tolerance) * before[key].ratio
    ]
