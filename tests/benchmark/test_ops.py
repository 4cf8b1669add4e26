"""Operators: every backend is measured, wrong ones are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch

from piip.benchmark import Settings, Timing, ops
from piip.benchmark.ops import DeformAttnCase, NormedCase, OpCase
from piip.layers.kernels import ska_eager

SHORT = Settings(rounds=3, seconds=0.002)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_measured_forward_and_backward(dtype: torch.dtype) -> None:
    rows = OpCase((3, 4), 16, 2, backward=True).measure(dataclasses.replace(SHORT, dtype=dtype))
    assert rows[0].name == "unfold"
    assert rows[-1].name == "copy of x"
    by_name = {row.name: row for row in rows}
    assert by_name["eager"].numbers["extra_mb"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_with_norms_is_measured(dtype: torch.dtype) -> None:
    rows = NormedCase((3, 4), 128, 2, backward=False).measure(dataclasses.replace(SHORT, dtype=dtype))
    names = [row.name for row in rows]
    assert names[:2] == ["one by one", "one by one, channels last"]
    assert {"eager", "eager, channels last"} < set(names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deformable_attention_is_measured_forward_and_backward(dtype: torch.dtype) -> None:
    rows = DeformAttnCase("B<-S", 3, 4, 6, backward=True).measure(dataclasses.replace(SHORT, dtype=dtype))
    assert (rows[0].name, rows[-1].name) == ("grid_sample", "copy of value")
    assert next(row for row in rows if row.name == "eager").numbers["extra_mb"] > 0


def test_a_call_with_each_of_several_inputs_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = ska_eager.forward
    monkeypatch.setattr(ska_eager, "forward", lambda x, w: calls.append(x) or forward(x, w))
    monkeypatch.setattr(ops, "_several", lambda make, settings: [make(settings) for _ in range(3)])

    def once(functions: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, Timing]:
        calls.clear()
        functions["eager"]()
        return {name: Timing(6.0, 3.0, 0.1, 2.0) for name in functions}

    monkeypatch.setattr(ops, "in_turns", once)
    rows = {row.name: row for row in OpCase((3, 4), 16, 2, backward=False, device="cuda").measure(SHORT)}
    assert len({x.data_ptr() for x in calls}) == 3
    eager = rows["eager"]
    assert (eager.ms, eager.min_ms, eager.spread, eager.ratio) == (2.0, 1.0, 0.1, 2.0)


def test_bytes_that_have_to_be_moved() -> None:
    n = 2 * 16 * 3 * 4 * 4 / 1e6  # megabytes of x
    for backward, expected in ((False, 2 + 9 / 8), (True, 2 + 9 / 8 + 3 + 18 / 8)):
        rows = {row.name: row for row in OpCase((3, 4), 16, 2, backward).measure(SHORT)}
        assert rows["eager"].numbers["moved_mb"] == pytest.approx(expected * n)
        assert rows["copy of x"].numbers["moved_mb"] == pytest.approx(2 * n)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
def test_on_a_gpu_graphs_of_all_ways_are_replayed(backward: bool) -> None:
    settings = dataclasses.replace(SHORT, device="cuda", dtype=torch.bfloat16)
    for case in (OpCase((28, 28), 128, 8, backward), DeformAttnCase("B<-S", 42, 70, 24, backward)):
        rows = case.measure(settings)
        assert {"triton", "eager"} < {row.name for row in rows}
        assert all(0 < row.share_of_floor < 1.5 for row in rows)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ska_eager, "forward", lambda x, w: x)
    with pytest.raises(ArithmeticError, match="SKA 3x4 C16 B1 forward, eager: relative error"):
        OpCase((3, 4), 16, 1, backward=False).measure(SHORT)
