"""Layer-wise learning-rate decay against the groups of the released recipe."""

import pytest
import timm
import torch
from torch import nn

from piip.checkpoint.build import build_from_official
from piip.checkpoint.official import official_names
from piip.errors import ConfigError
from piip.modeling import PIIP, ViTBranch
from piip.modeling.without_weights import on_meta
from piip.optim import layer_decay_groups
from tests import reference


def test_groups_equal_the_released_ones():
    want = reference.case("piip/lr_groups_tsb_1120_896_448")
    args = reference.case("piip/tsb_1120_896_448_in320x320")["args"]
    with on_meta():
        model = build_from_official("PIIPThreeBranch", args)
    names = official_names(model)
    got = layer_decay_groups(model, base_lr=1e-4, weight_decay=0.05, lr_decay_rate=0.85)
    expected = {name: (group["lr"], group["weight_decay"]) for group in want["groups"] for name in group["names"]}
    found = {names[name]: (g["lr"], g["weight_decay"]) for g in got for name in g["names"]}
    assert found.keys() == expected.keys()
    for name, (lr, decay) in expected.items():
        assert found[name][0] == pytest.approx(lr, rel=1e-6), name
        assert found[name][1] == decay, name
    assert len(got) == len(want["groups"])


def test_shallower_branches_take_larger_steps_down():
    model = PIIP([ViTBranch(32, 2, 2), ViTBranch(64, 3, 2), ViTBranch(64, 4, 2)], [224, 160, 96], 2, {"num_heads": 4})
    groups = layer_decay_groups(nn.ModuleDict({"backbone": model}), 1.0, 0.1, lr_decay_rate=0.5)
    lr = {name: group["lr"] for group in groups for name in group["names"]}
    bias = "backbone.branches.{}.blocks.{}.mlp.fc1.bias"
    assert [lr[bias.format(0, i)] for i in range(2)] == [0.5**3, 0.5**1]
    # floor((i + 1) * 4 / 3) = 1, 2, 4 for the branch of three blocks
    assert [lr[bias.format(1, i)] for i in range(3)] == [0.5**4, 0.5**3, 0.5**1]
    assert [lr[bias.format(2, i)] for i in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5**1]
    assert lr["backbone.branches.2.pos_embed"] == 0.5**5
    assert lr["backbone.merge.weights.0"] == 1.0


def test_models_without_branches_have_one_rate_and_frozen_parameters_no_group():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = layer_decay_groups(model, 0.1, 0.05, lr_decay_rate=0.5)
    assert [(g["names"], g["lr"], g["weight_decay"]) for g in groups] == [
        (["1.weight"], 0.1, 0.05),
        (["1.bias"], 0.1, 0.0),
    ]


def test_rate_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"lr_decay_rate=1.5"):
        layer_decay_groups(nn.Linear(1, 1), 0.1, 0.1, lr_decay_rate=1.5)


def test_parts_may_learn_faster_and_names_be_spared():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "interactions": nn.Sequential(nn.Linear(2, 2))})
    model.body.table = nn.Parameter(torch.zeros(3, 3))
    groups = layer_decay_groups(
        model, 0.1, 0.05, lr_factors={"interactions": 10.0}, never_decay=["table"], decay_vectors=True
    )
    found = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert found == {
        "body.table": (0.1, 0.0),
        "body.weight": (0.1, 0.05),
        "body.bias": (0.1, 0.05),
        "interactions.0.weight": (1.0, 0.05),
        "interactions.0.bias": (1.0, 0.05),
    }


@pytest.mark.parametrize("options", [{"lr_factors": {"necks": 2.0}}, {"never_decay": ["necks"]}])
def test_names_that_meet_no_parameter_are_told(options):
    with pytest.raises(ConfigError, match="no parameter of the model has 'necks'"):
        layer_decay_groups(nn.Linear(1, 1), 0.1, 0.1, **options)


def test_networks_of_timm_have_their_own_layers():
    model = nn.ModuleDict({"network": timm.create_model("test_vit", num_classes=3), "extra": nn.Linear(1, 1)})
    groups = layer_decay_groups(model, 1.0, 0.0, lr_decay_rate=0.5)
    lr = {name: group["lr"] for group in groups for name in group["names"]}
    depth = len(model.network.blocks)
    assert lr["network.patch_embed.proj.weight"] == lr["network.pos_embed"] == 0.5 ** (depth + 1)
    for i in range(depth):
        assert lr[f"network.blocks.{i}.attn.proj.bias"] == 0.5 ** (depth - i)
    assert lr["network.head.weight"] == lr["extra.weight"] == 1.0
