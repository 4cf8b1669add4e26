"""Schedules of segmentors: published rates at their beginning, middle and end."""

from __future__ import annotations

import pytest
from detectron2.config import instantiate

from piip.engine.config import load_config
from piip.errors import ConfigError
from piip.optim import PolynomialDecay


def test_poly_decay_by_its_formula() -> None:
    schedule = PolynomialDecay(power=0.9, end_value=0.005)
    rates = [2e-4 * schedule(iteration / 40000) for iteration in (0, 10000, 39999)]
    expected = [(2e-4 - 1e-6) * (1 - i / 40000) ** 0.9 + 1e-6 for i in (0, 10000, 39999)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_straight_line_with_warm_up() -> None:
    cfg = load_config("ADE20K-SemanticSegmentation/upernet_piip_h6b_512_256_80k.py")
    assert (cfg.optimizer.lr, cfg.train.max_iter) == (4e-5, 80000)
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(750 / 80000) == pytest.approx(0.5, rel=0.02)
    assert schedule(0.5) == pytest.approx(0.5)
    assert schedule(79999 / 80000) == pytest.approx(1 / 80000, rel=1e-6)


def test_another_length_keeps_the_shape() -> None:
    name, length = "ADE20K-SemanticSegmentation/upernet_piip_h6b_512_256_80k.py", "train.max_iter=160000"
    schedule = instantiate(load_config(name, [length]).lr_multiplier)
    assert schedule(1500 / 160000) == pytest.approx(1 - 1500 / 160000, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"power": 0}, {"end_value": -0.1}, {"end_value": 1.5}])
def test_refusals(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="PolynomialDecay needs"):
        PolynomialDecay(**wrong)
