"""Operators: every backend is measured, wrong ones are not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from piip.benchmark import Settings
from piip.benchmark.ops import DeformAttnCase, OpCase
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
def test_deformable_attention_is_measured_forward_and_backward(dtype: torch.dtype) -> None:
    rows = DeformAttnCase("B<-S", 3, 4, 6, backward=True).measure(dataclasses.replace(SHORT, dtype=dtype))
    assert (rows[0].name, rows[-1].name) == ("grid_sample", "copy of value")
    assert next(row for row in rows if row.name == "eager").numbers["extra_mb"] > 0


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ska_eager, "forward", lambda x, w: x)
    with pytest.raises(ArithmeticError, match="SKA 3x4 C16 B1 forward, eager: relative error"):
        OpCase((3, 4), 16, 1, backward=False).measure(SHORT)
