"""Timing, memory and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piip.benchmark import Row, Settings, append, compare, in_turns, read, timing
from piip.benchmark.floor import floor
from piip.benchmark.timing import peak_memory, run_once
from piip.errors import DataError

SHORT = Settings(rounds=3, seconds=0.002)
ROW = Row("ops", "a case", "a way", ms=2, min_ms=1, spread=0.05, ratio=4, environment={"dtype": "float32"})


def test_ratios_are_to_the_first_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def call(takes: float) -> None:
        nonlocal seconds
        seconds += takes * (1 + seconds)  # the machine becomes slower and slower

    monkeypatch.setattr(timing, "now", lambda device: seconds)
    timings = in_turns({"large": lambda: call(0.08), "small": lambda: call(0.01)}, SHORT)
    assert timings["large"].ratio == 1
    assert timings["small"].ratio == pytest.approx(8, rel=0.2)
    assert 0 < timings["small"].minimum < timings["small"].median < timings["large"].median


def test_what_takes_longer_than_a_turn_is_called_once_per_round() -> None:
    calls = []
    matrix = torch.randn(512, 512)
    in_turns({"long": lambda: calls.append(matrix @ matrix)}, Settings(rounds=3, seconds=1e-6))
    assert len(calls) == 3
    # What the caller has called before is the first round.
    timing = in_turns({"long": lambda: calls.append(1)}, Settings(rounds=2, seconds=1e-6), {"long": 1e6})["long"]
    assert len(calls) == 4
    assert timing.median > 4e5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_on_a_cpu_a_long_first_call_is_a_round(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake_time(function: Callable[[], object], repeats: int, settings: Settings) -> float:
        """The first call takes ten seconds, the others a millisecond each."""
        before = len(calls)
        for _ in range(repeats):
            function()
        return sum(1 if index else 10_000 for index in range(before, len(calls))) / repeats

    monkeypatch.setattr(timing, "_time", fake_time)
    settings = Settings(device, rounds=3, seconds=0.1).at_most(1)
    result = in_turns({"compiles first": lambda: calls.append(1)}, settings)["compiles first"]
    if device == "cpu":
        assert (len(calls), result.median) == (1, 10_000)
    else:
        # Three calls are warm-up, four show how long they take; then three turns of 0.1 s.
        assert (len(calls), result.median, result.minimum) == (3 + 4 + 3 * 100, 1, 1)


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    x = torch.zeros(100_000)  # 400 kB

    def chain() -> torch.Tensor:
        y = x + 1
        y = y[:50_000] * 2  # a view takes nothing; the sum is freed afterwards
        return y.add_(1).exp()

    assert peak_memory(chain, "cpu") == pytest.approx(600_000, abs=100)  # and some numbers
    once = run_once(lambda: x.clone(), SHORT)
    assert torch.equal(once.result, x)
    assert once.peak == 400_000
    assert once.ms > 0


def test_operators_cannot_be_faster_than_the_floor() -> None:
    rates = floor("cpu", torch.get_num_threads())
    assert rates is floor("cpu", torch.get_num_threads())  # measured once
    assert min(rates.values()) > 0
    row = dataclasses.replace(ROW, environment={"dtype": "float32", **rates})
    assert row.share_of_floor is None
    half = dataclasses.replace(row, ms=1000, numbers={"gmacs": rates["float32_gflops"] / 4})
    assert half.share_of_floor == pytest.approx(0.5)
    batch = dataclasses.replace(half, numbers={**half.numbers, "images_per_s": 2})
    assert batch.share_of_floor == pytest.approx(1)


def test_on_a_gpu_what_takes_longer_of_products_and_copies_is_the_floor() -> None:
    rates = {"copy_gb_s": 4000, "bfloat16_gflops": 800_000, "float16_gflops": 400_000}
    numbers = {"moved_mb": 160, "gmacs": 8.0}  # 40 us, 20 us
    row = dataclasses.replace(ROW, ms=0.1, numbers=numbers, environment={"dtype": "bfloat16", **rates})
    assert row.share_of_floor == pytest.approx(0.2)
    on_gpu = {**row.environment, "clock": "CUDA events"}
    assert dataclasses.replace(row, environment=on_gpu).share_of_floor == pytest.approx(0.4)
    half = dataclasses.replace(row, environment={**on_gpu, "dtype": "float16"}, numbers={**numbers, "gmacs": 16.0})
    assert half.share_of_floor == pytest.approx(0.8)


def test_records_are_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append(path, [ROW])
    append(path, [dataclasses.replace(ROW, name="another")])
    assert [row.name for row in read(path)] == ["a way", "another"]
    assert read(path)[0] == ROW
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl is not a file that --output wrote"):
        read(path)


def test_only_ratios_of_the_same_rows_are_compared() -> None:
    slower, faster = dataclasses.replace(ROW, ratio=3.5), dataclasses.replace(ROW, ratio=4.5)
    assert compare([ROW], [slower]) == (["a case, a way: 4.00x -> 3.50x"], [])
    assert compare([ROW], [faster]) == ([], ["a case, a way: 4.00x -> 4.50x"])
    assert compare([ROW], [dataclasses.replace(ROW, ratio=3.7, ms=100)]) == ([], [])
    # What varies by more than that has not moved, nor has what the ratio is to.
    assert compare([ROW], [dataclasses.replace(slower, spread=0.2)]) == ([], [])
    first = dataclasses.replace(ROW, name="plain", ratio=1)
    assert compare([first, ROW], [first, slower]) == (["a case, a way: 4.00x -> 3.50x"], [])
    assert compare([first, ROW], [dataclasses.replace(first, spread=0.2), slower]) == ([], [])
    copies = [dataclasses.replace(row, name="copy of x") for row in (ROW, slower)]
    assert compare(copies[:1], copies[1:]) == ([], [])
    # The latest measurement of a row counts.
    assert compare([ROW, dataclasses.replace(ROW, ratio=3.6)], [slower]) == ([], [])
    # What was measured beside others before, and is not now, unless it takes an option.
    more = [first, ROW, *(dataclasses.replace(ROW, name=name) for name in ("ours", "ours, compiled"))]
    assert compare([*more, dataclasses.replace(ROW, case="other")], more[:2]) == (
        ["a case, ours: 4.00x -> not there"],
        [],
    )
    with pytest.raises(DataError, match="none of their rows in common"):
        compare([ROW], [dataclasses.replace(slower, environment={"dtype": "bfloat16"})])
