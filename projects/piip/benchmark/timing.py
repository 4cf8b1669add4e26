"""Times of functions that run in turns."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.autograd.profiler import profile

__all__ = ["Once", "Settings", "Timing", "in_turns", "now", "peak_memory", "recorded", "run_once"]


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

    def at_most(self, rounds: int) -> Settings:
        """The same with fewer rounds, for what takes long; on a GPU nothing does."""
        return replace(self, rounds=min(self.rounds, rounds)) if self.device == "cpu" else self


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

    @property
    def values(self) -> tuple[float, float, float, float]:
        """All four, in the order of a :class:`~.records.Row`."""
        return self.median, self.minimum, self.spread, self.ratio


def in_turns(
    functions: Mapping[str, Callable[[], object]], settings: Settings, first: Mapping[str, float] | None = None
) -> dict[str, Timing]:
    """Times functions against each other: all of them in every round, so that a disturbance meets all.

    Where all take longer than a turn, there is no warm-up: their first calls are the first round. Not so on a GPU,
    where first calls compile kernels, choose algorithms and record graphs: they are never counted.

    Args:
        functions: what to call; the ratios are to the first one.
        settings: how long and where.
        first: milliseconds of the first calls, for those that the caller made.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    if settings.device == "cpu":
        warm = dict(first or {})
        warm |= {name: _time(function, 1, settings) for name, function in functions.items() if name not in warm}
        if min(warm.values()) > 2000 * settings.seconds:
            times = {name: [value] for name, value in warm.items()}
    else:
        for function in functions.values():
            _time(function, 3, settings)
        warm = {name: _time(function, 1, settings) for name, function in functions.items()}
    repeats = {name: _repeats(function, warm[name], settings) for name, function in functions.items()}
    while len(unit := next(iter(times.values()))) < settings.rounds:
        for name, function in functions.items():
            times[name].append(_time(function, repeats[name], settings))
    return {name: _summary(values, unit) for name, values in times.items()}


def _repeats(function: Callable[[], object], first: float, settings: Settings) -> int:
    """Calls per turn, found by some more warm-up where it is short."""
    if first > 2000 * settings.seconds:
        return 1
    _time(function, 1, settings)
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
    begin = now(settings.device)
    for _ in range(repeats):
        function()
    return (now(settings.device) - begin) * 1000 / repeats


def recorded(function: Callable[[], object]) -> Callable[[], None]:
    """What a GPU computes in a call, as a CUDA graph: replaying it takes no time for launches.

    Raises:
        RuntimeError: for what no graph can hold, such as waiting for the GPU.
    """
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def now(device: str) -> float:
    """Seconds of the clock; on a GPU, after all that it was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _summary(values: list[float], unit: list[float]) -> Timing:
    median = statistics.median(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [median] * 3
    ratio = statistics.median(a / b for a, b in zip(unit, values, strict=True))
    return Timing(median, min(values), (quartiles[2] - quartiles[0]) / 2 / median, ratio)


@dataclass(frozen=True)
class Once:
    """The first call of a function, on a GPU the second one: the first one also takes what stays, such as workspaces.

    Attributes:
        result: what it returned.
        peak: most bytes of tensors that it had alive beside what there was before, its result included; of the CPU
            with all that operators take for themselves from torch's allocator.
        ms: what it took.
    """

    result: Any
    peak: int
    ms: float


def peak_memory(function: Callable[[], object], device: str) -> int:
    """:attr:`Once.peak` of a call."""
    return run_once(function, Settings(device)).peak


def run_once(function: Callable[[], object], settings: Settings) -> Once:
    """Calls a function once, on a GPU twice."""
    results = []
    call = partial(_time, lambda: results.append(function()), 1, settings)
    if settings.device == "cuda":
        function()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ms = call()
        return Once(results[0], torch.cuda.max_memory_allocated() - before, ms)
    # Else Kineto says on a machine without a GPU that there is none.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as profiler:
        ms = call()
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    taken = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return Once(results[0], max(taken, default=0), ms)
