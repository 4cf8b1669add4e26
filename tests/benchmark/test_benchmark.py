"""Timing, memory, records, and the checks of results before they are timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from piip.benchmark import Row, Settings, append, compare, in_turns, read
from piip.benchmark.backbones import BackboneCase
from piip.benchmark.ops import OpCase
from piip.benchmark.timing import peak_memory
from piip.errors import DataError
from piip.layers.kernels import ska_eager

SHORT = Settings(rounds=3, seconds=0.002)
ROW = Row("ops", "a case", "a way", ms=2, min_ms=1, spread=0.1, ratio=4, environment={"dtype": "float32"})


def test_ratios_are_to_the_first() -> None:
    small, large = torch.randn(64, 64), torch.randn(512, 512)
    timings = in_turns({"large": lambda: large @ large, "small": lambda: small @ small}, SHORT)
    assert timings["large"].ratio == 1
    assert timings["small"].ratio > 4
    assert 0 < timings["small"].minimum <= timings["small"].median < timings["large"].median


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    x = torch.zeros(1000)  # 4000 bytes

    def chain() -> torch.Tensor:
        y = x + 1
        y = y[:500] * 2  # a view takes nothing; the sum is freed afterwards
        return y.add_(1).exp()

    assert peak_memory(chain, "cpu") == 6000


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
    slower = dataclasses.replace(ROW, ratio=3.5)
    assert compare([ROW], [slower]) == ["a case, a way: 4.00x -> 3.50x"]
    assert not compare([ROW], [dataclasses.replace(ROW, ratio=3.7, ms=100)])
    assert not compare([ROW], [dataclasses.replace(slower, environment={"dtype": "bfloat16"})])
    # The latest measurement of a row counts.
    assert not compare([ROW, dataclasses.replace(ROW, ratio=3.6)], [slower])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_measured_forward_and_backward(dtype: torch.dtype) -> None:
    rows = OpCase((3, 4), 16, 2, backward=True).measure(dataclasses.replace(SHORT, dtype=dtype))
    assert rows[0].name == "unfold"
    assert rows[-1].name == "copy of x"
    by_name = {row.name: row for row in rows}
    assert by_name["eager"].numbers["extra_mb"] > 0


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ska_eager, "forward", lambda x, w: x)
    with pytest.raises(ArithmeticError, match="SKA 3x4 C16 B1 forward, eager: relative error"):
        OpCase((3, 4), 16, 1, backward=False).measure(SHORT)


def test_backbones_are_measured_in_all_forms() -> None:
    case = BackboneCase("lsnet_t", ("mobilenetv4_conv_small",), batch=1, side=64)
    rows = {row.name: row for row in case.measure(Settings(rounds=1, seconds=0))}
    assert next(iter(rows)) == "unfold"
    assert list(rows)[-1] == "mobilenetv4_conv_small"
    assert rows["kernels, fused"].numbers["batch_norms"] < rows["kernels"].numbers["batch_norms"]
    assert rows["kernels"].numbers["gmacs"] == pytest.approx(rows["unfold"].numbers["gmacs"], rel=0.01)
