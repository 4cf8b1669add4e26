"""The ViT branch: bad settings, stepping, positions."""

from unittest.mock import Mock

import pytest
import torch

from piip.errors import ConfigError
from piip.layers import attention
from piip.modeling import ViTBranch
from piip.modeling.branches import transformer
from piip.modeling.branches.transformer import resample_positions


def test_stepping_through_blocks_equals_running_them_at_once():
    branch = ViTBranch(32, 4, 2, window_size=[2, 0, 3, 0]).eval()
    state = branch.embed(torch.randn(1, 3, 64, 96))
    assert state.grid_size == (4, 6)
    at_once = branch.run(state, 0, 4).tokens
    for i in range(4):
        state = branch.run(state, i, i + 1)
    assert torch.equal(state.tokens, at_once)


def test_global_attention_equals_one_window_over_the_grid():
    glob, wind = ViTBranch(32, 2, 2).eval(), ViTBranch(32, 2, 2, window_size=4).eval()
    wind.load_state_dict(glob.state_dict())
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        wind.run(wind.embed(image), 0, 2).tokens, glob.run(glob.embed(image), 0, 2).tokens, rtol=1e-5, atol=1e-5
    )


def test_layer_ids_count_from_the_embedding():
    branch = ViTBranch(32, 3, 2)
    ids = {branch.layer_id(name) for name, _ in branch.named_parameters()}
    assert ids == {0, 1, 2, 3}
    assert branch.layer_id("pos_embed") == branch.layer_id("patch_embed.proj.weight") == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window_size": [4, 4]}, r"window_size=\[4, 4\].*depth is 3"),
        ({"window_size": -1}, ">= 0"),
        ({"num_heads": 5}, "num_heads=5 does not divide embed_dim=32"),
        ({"pretrain_img_size": 8}, "pretrain_img_size=8 .*patch_size=16"),
        ({"drop_path_rate": [0.1, 0.2]}, "2 values for 3 blocks"),
        ({"norm": "BN"}, "norm=.BN. is unknown.*RMS"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate=1.5"),
        ({"activation": "relu"}, "activation='relu'.*gelu_tanh"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        ViTBranch(**{"embed_dim": 32, "depth": 3, "num_heads": 2, **kwargs})


@pytest.mark.parametrize("use_act_checkpoint", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("sides", "cuts"), [((64, 128), 1), ((64, 80), 3)])
def test_tokens_stay_in_their_windows_between_blocks(monkeypatch, sides, cuts, training, use_act_checkpoint):
    """And stochastic depth spares whole images all the same."""
    branch = ViTBranch(
        32,
        4,
        2,
        window_size=[4, 4, 4, 0],
        pretrain_img_size=64,
        drop_path_rate=0.5,
        use_act_checkpoint=use_act_checkpoint,
    ).train(training)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(3, 3, *sides)

    def run(*ranges):
        torch.manual_seed(0)
        state = branch.embed(image)
        for start, stop in ranges:
            state = branch.run(state, start, stop)
        branch.zero_grad()
        state.tokens.square().mean().backward()
        return state.tokens, *(parameter.grad for parameter in branch.parameters())

    one_by_one = run(*((k, k + 1) for k in range(4)))
    counted = Mock(wraps=transformer.window_partition)
    monkeypatch.setattr(transformer, "window_partition", counted)
    monkeypatch.setattr(attention, "window_partition", counted)
    with torch.no_grad():
        branch.run(branch.embed(image), 0, 4)
    assert counted.call_count == cuts
    torch.testing.assert_close(run((0, 4)), one_by_one, rtol=1e-4, atol=1e-5)


def test_frozen_positions_are_resized_once_per_size_until_they_change():
    branch = ViTBranch(32, 1, 2, pretrain_img_size=64).requires_grad_(False).eval()
    with torch.inference_mode():
        first = branch.positions((6, 7))
    assert branch.positions((6, 7)) is first
    assert branch.positions((7, 6)) is not first
    weights = {**branch.state_dict(), "pos_embed": torch.randn_like(branch.pos_embed)}
    branch.load_state_dict(weights)
    loaded = branch.positions((6, 7))
    assert not torch.equal(loaded, first)
    assert branch.bfloat16().float().positions((6, 7)) is not loaded
    learning = ViTBranch(32, 1, 2, pretrain_img_size=64)
    learning.load_state_dict(weights)
    torch.testing.assert_close(learning.positions((6, 7)), loaded)
    assert learning.positions((6, 7)).requires_grad


def test_frozen_positions_are_those_of_the_weights_assigned_last():
    branch = ViTBranch(32, 1, 2, pretrain_img_size=64).requires_grad_(False).eval()
    for _ in range(20):  # memory that became free is used again
        weights = {**branch.state_dict(), "pos_embed": torch.randn(1, 16, 32)}
        branch.load_state_dict(weights, assign=True)
        branch.requires_grad_(False)
        expected = resample_positions(weights["pos_embed"], (4, 4), (6, 7))
        torch.testing.assert_close(branch.positions((6, 7)), expected)
        del weights
