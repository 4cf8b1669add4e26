"""Times of functions that run in turns."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Settings", "Timing", "in_turns", "peak_memory"]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        dtype: of the tensors.
        rounds: how many turns every function gets.
        seconds: how long a turn takes, about.
        compiled: whether networks are measured as torch.compile makes them, too, which takes a minute each.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 7
    seconds: float = 0.1
    compiled: bool = False

    @property
    def clock(self) -> str:
        """What is measured: with one thread, the time that neighbours on the machine do not take."""
        if self.device == "cuda":
            return "CUDA events"
        return "process time" if torch.get_num_threads() == 1 else "wall clock"


@dataclass(frozen=True)
class Timing:
    """Times of one call in milliseconds.

    Attributes:
        median, minimum: over the rounds.
        spread: half of the rounds lie within this share of the median.
        ratio: how many times as fast as the first function, the median of the rounds' ratios.
    """

    median: float
    minimum: float
    spread: float
    ratio: float


def in_turns(functions: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, Timing]:
    """Times functions against each other: all of them in every round, so that a disturbance meets all.

    Args:
        functions: what to call; the ratios are to the first one.
        settings: how long and where.
    """
    repeats = {name: _repeats(function, settings) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(settings.rounds):
        for name, function in functions.items():
            times[name].append(_time(function, repeats[name], settings))
    first = next(iter(times.values()))
    return {name: _summary(values, first) for name, values in times.items()}


def _repeats(function: Callable[[], object], settings: Settings) -> int:
    """Calls per turn; this is the warm-up, too."""
    _time(function, 2, settings)
    return max(1, round(settings.seconds * 1000 / max(_time(function, 2, settings), 1e-4)))


def _time(function: Callable[[], object], repeats: int, settings: Settings) -> float:
    """Milliseconds per call."""
    if settings.device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(repeats):
        function()
    return (clock() - begin) * 1000 / repeats


def _summary(values: list[float], first: list[float]) -> Timing:
    median = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
    ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
    return Timing(median, min(values), (quartiles[2] - quartiles[0]) / 2 / median, ratio)


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Most bytes of tensors that a call has alive beside what there was before, its results included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with _Allocations() as allocations:
        function()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Follows the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key not in self.known and key not in given:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
