"""Interaction units against the reference numbers; the identity at the start."""

import re

import pytest
import torch

from piip.checkpoint.official import official_names
from piip.errors import ConfigError
from piip.modeling import InteractionUnit
from tests import reference

KWARGS = {"num_heads": 4, "num_points": 4, "drop_path_rate": 0.4}


def load(unit, case):
    weights = reference.weights(case["state_dict"])
    unit.load_state_dict({ours: weights[theirs] for ours, theirs in official_names(unit).items()})
    assert len(unit.state_dict()) == len(weights)
    assert sum(p.numel() for p in unit.parameters()) == case["param_count"]
    return unit.eval()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("interaction_unit", {}),
        ("interaction_unit_crossattn", {"attention": "dense"}),
        ("interaction_unit_noproj_nonorm", {"with_proj": False, "with_norm": False}),
    ],
)
def test_unit_matches_reference_with_gradients(name, kwargs):
    case = reference.case(f"piip/{name}")
    unit = load(InteractionUnit(32, 64, **KWARGS, **kwargs), case)
    coarse, fine = (reference.normal(case["input"][k]["seed"], case["input"][k]["shape"]) for k in ("x1", "x2"))
    coarse.requires_grad_()
    fine.requires_grad_()
    new_fine, new_coarse = unit(fine, coarse, (11, 9), (6, 5))
    for got, record in zip((new_coarse, new_fine), case["outputs"], strict=True):
        reference.assert_matches(got, record)
    seeds = [int(seed) for seed in re.findall(r"RandomState\((\d+)\)", case["grad_rule"])]
    outputs = zip(seeds, (new_coarse, new_fine), strict=True)
    loss = sum((y * reference.normal(seed, list(y.shape))).sum() for seed, y in outputs)
    loss.backward()
    ours = {theirs: name for name, theirs in official_names(unit).items()}
    for record in case["grads"]:
        tensor = {"x1": coarse, "x2": fine}.get(record["name"])
        if tensor is None:
            tensor = unit.get_parameter(ours[record["name"]])
        reference.assert_matches(tensor.grad, record, rtol=1e-4)


def test_untrained_unit_is_the_identity_and_only_its_gates_learn_at_first():
    unit = InteractionUnit(32, 64, **KWARGS).eval()
    fine, coarse = torch.randn(2, 12, 32), torch.randn(2, 4, 64)
    out = unit(fine, coarse, (3, 4), (2, 2))
    assert torch.equal(out[0], fine)
    assert torch.equal(out[1], coarse)
    (out[0].sum() + out[1].sum()).backward()
    for name, parameter in unit.named_parameters():
        assert (parameter.grad.abs().sum() > 0) == ("gamma" in name), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention": "sparse"}, "attention='sparse'"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_heads": 7, "attention": "dense"}, "num_heads=7"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        InteractionUnit(32, 64, **kwargs)


def test_unknown_settings_are_errors():
    with pytest.raises(TypeError, match="heads"):
        InteractionUnit(32, 64, heads=4)
