"""Rows of measurements: files of JSON lines, and their comparison."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from ..errors import DataError
from ..layers.kernels.choice import OPERATORS, in_use
from .floor import floor
from .timing import Settings

__all__ = ["Row", "append", "compare", "environment", "grouped", "read"]


@dataclass(frozen=True)
class Row:
    """One way to compute one thing.

    Attributes:
        suite, case, name: which measurements belong together, what was computed, and how.
        ms, min_ms, spread, ratio: see :class:`~.timing.Timing`; the ratio is to the first row of the case. All are
            zero where nothing was timed.
        numbers: what else was measured.
        environment: see :func:`environment`.
    """

    suite: str
    case: str
    name: str
    ms: float = 0
    min_ms: float = 0
    spread: float = 0
    ratio: float = 0
    numbers: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """Rows with the same key may be compared."""
        shown = (str(self.environment.get(name)) for name in ("device", "dtype", "threads"))
        return self.suite, self.case, self.name, *shown

    @property
    def share_of_floor(self) -> float | None:
        """How near the time is to what the machine would take at best; None where unknown.

        At best the counted multiply-adds run at the rate of its matrix products, and on a GPU the bytes that have to
        be moved at the rate of its copies, whichever takes longer. A CPU's caches hold those.
        """
        e, numbers, shares = self.environment, self.numbers, []
        if not self.ms:
            return None
        if (rate := e.get(f"{e.get('dtype')}_gflops")) and numbers.get("gmacs"):
            shares.append(2 * numbers["gmacs"] * numbers.get("images_per_s", 1000 / self.ms) / rate)
        if (rate := e.get("copy_gb_s")) and "moved_mb" in numbers and e.get("clock") == "CUDA events":
            shares.append(numbers["moved_mb"] / self.ms / rate)
        return max(shares, default=None)


def environment(settings: Settings) -> dict[str, Any]:
    """What times depend on, with the rates that the machine reaches at most, measured in this process."""
    cuda = settings.device == "cuda"
    threads = torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "processor": None if cuda else _processor(),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "threads": threads,
        "clock": settings.clock,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "kernels": {operator: in_use(operator, settings.device) for operator in OPERATORS},
        "tf32": torch.backends.cuda.matmul.allow_tf32 if cuda else None,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if cuda else None,
        **floor(settings.device, threads),
    }


def _processor() -> str:
    """What the CPU has of what makes matrix products fast."""
    matrices = "with AMX" if torch.cpu._is_amx_tile_supported() else "without AMX"
    return f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {matrices}"


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


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    """Rows with equal keys together, also where others are between them."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def compare(old: Iterable[Row], new: Iterable[Row], tolerance: float = 0.1) -> tuple[list[str], list[str]]:
    """Rows whose ratio to the first row of their case moved by more than the tolerance and by more than both vary.

    Of rows with equal keys the latest counts. Ratios only: times differ between machines. Copies, which are there for
    scale, are left out.

    Args:
        old, new: what to compare.
        tolerance: share of the ratio.

    Returns:
        what became slower or is no longer there beside others of its case (compiled rows may be left out), and what
        became faster, in words.

    Raises:
        DataError: when the two have no row in common.
    """
    before, now = ({row.key: row for row in rows} for rows in (old, new))
    common = [key for key in now if key in before]
    if not common:
        raise DataError("the two have none of their rows in common at one device, dtype and number of threads.")
    spreads = _spreads(before), _spreads(now)
    measured = {_case(row) for row in now.values()}
    gone = [
        f"{row.case}, {row.name}: {row.ratio:.2f}x -> not there"
        for key, row in before.items()
        if key not in now and _case(row) in measured and not row.name.endswith(("compiled", "CUDA graphs"))
    ]
    moved: tuple[list[str], list[str]] = gone, []
    for key in common:
        past, present = before[key].ratio, now[key].ratio
        factor = 1 + max(tolerance, *(spread[key] for spread in spreads))
        if not past / factor <= present <= past * factor and not now[key].name.startswith("copy of "):
            moved[present > past].append(f"{now[key].case}, {now[key].name}: {past:.2f}x -> {present:.2f}x")
    return moved


def _case(row: Row) -> tuple[str, ...]:
    """What rows that ran in turns have in common."""
    return *row.key[:2], *row.key[3:]


def _spreads(rows: Mapping[tuple[str, ...], Row]) -> dict[tuple[str, ...], float]:
    """By how much of itself the ratio of a row varies: both times of it do."""
    cases = grouped(rows.values(), _case)
    return {row.key: row.spread + case[0].spread for case in cases.values() for row in case}
