"""Sweeps: which trainings they have, and what these are called."""

from __future__ import annotations

import pytest

from piip.errors import ConfigError
from piip.slurm.sweep import expand, tag


def test_all_combinations() -> None:
    assert expand(["optimizer.lr=1e-4,2e-4", "train.seed=0:3"]) == [
        (f"optimizer.lr={lr}", f"train.seed={seed}") for lr in (0.0001, 0.0002) for seed in range(3)
    ]
    assert expand([]) == [()]
    assert expand(["model.width=16"]) == [("model.width=16",)]
    assert expand(["train.seed=-1:1"]) == [("train.seed=-1",), ("train.seed=0",)]


def test_hydra_s_grammar() -> None:
    assert expand(["a=range(1,4)"]) == [("a=1",), ("a=2",), ("a=3",)]
    assert expand(["a=choice(x,y)"]) == [("a=x",), ("a=y",)]
    assert expand(["a=[1,2],[3,4]"]) == [("a=[1,2]",), ("a=[3,4]",)]
    assert expand(["a=[1,2]"]) == [("a=[1,2]",)], "one value, a list"


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["train.seed"], "'train.seed' must be key=value,value,... or key=first:end"),
        (["a=1", "a=2"], "names 'a' twice; list all its values at once"),
        (["a=1,1"], "'a=1,1' lists a value twice"),
        (["a=3:3"], "'a=3:3' is an empty range; write key=first:end with first < end"),
        (["a=[1,"], r"'a=\[1,' cannot be read"),
    ],
)
def test_what_is_no_sweep(sweeps: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(sweeps)


def test_names() -> None:
    assert tag(["optimizer.lr=1e-4", "train.seed=0"]) == "lr_1e-4-seed_0"
    assert tag(["a.names=x, y/z", "b=[1,2]"]) == "names_x_y_z-b__1_2"
    assert len(tag(["a=" + "x" * 500])) == 80
