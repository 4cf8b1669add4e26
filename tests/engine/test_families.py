"""A reduced model of every branch family trains, learns everywhere, resumes and goes through the released layout."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from piip.checkpoint import load_official, load_weights, to_official
from tests.engine.running import differences, load, metrics, train

CONFIG = str(Path(__file__).with_name("families_config.py"))
FAMILIES = list(LazyConfig.load(CONFIG).families)


def choose(family: str) -> str:
    return f"model.backbone.bottom_up=${{families.{family}}}"


def build(family: str) -> torch.nn.Module:
    return instantiate(LazyConfig.apply_overrides(LazyConfig.load(CONFIG), [choose(family)]).model)


# Their training runs code that others run, too; their conversion is in test_convert.py and test_belongs.py, and every
# one of their parameters learns below.
LIKE_OTHERS = {"internvit", "internvit_6b", "beit", "uniperceiver", "hybrid", "single"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in FAMILIES]
)
def test_trains_resumes_and_converts_bit_for_bit(family: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, choose(family), config=CONFIG)
    assert all(math.isfinite(line["total_loss"]) for line in metrics(whole))
    # What a kill during the third iteration leaves.
    shutil.copytree(whole, killed)
    (killed / "model_final.pth").unlink()
    (killed / "last_checkpoint").write_text("model_0000001.pth")
    train(killed, choose(family), config=CONFIG, resume=True)
    assert differences(load(whole / "model_final.pth"), load(killed / "model_final.pth")) == []

    model, back = build(family), build(family)
    assert load_weights(model, str(whole / "model_final.pth")).complete
    assert load_official(back, to_official(model)).complete
    assert differences(dict(model.state_dict()), dict(back.state_dict())) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_the_backbone_learns(family: str) -> None:
    torch.manual_seed(0)
    model = build(family).backbone.bottom_up.eval()  # stochastic depth may drop a block for the whole batch
    for parameter in model.parameters():  # gates, scales and projections that start at zero hide what is behind them
        parameter.data += 0.1 * torch.randn_like(parameter)
    sum(x.square().mean() for x in model(torch.randn(2, 3, 128, 160)).values()).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []
