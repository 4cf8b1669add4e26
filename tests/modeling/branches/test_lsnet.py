"""The LSNet branch: its blocks, grids and biases, and PIIP with it."""

from __future__ import annotations

import pytest
import torch

from piip.errors import ConfigError
from piip.modeling import FPN, PIIP, LSNet, SingleBranch, ViTBranch
from piip.modeling.branches import LSNetBranch
from piip.modeling.lsnet import VARIANTS
from piip.modeling.without_weights import on_meta

TINY = {"dims": (16, 24, 32, 64), "depths": (0, 2, 2, 2)}
NAMES = ["c2", "c3", "c4", "c5", "c6"]
GROUPS = [[[0, 0], [1, 1], [2, 4], [5, 7], [8, 10]], [[i, i] for i in range(5)], [[i, i] for i in range(5)]]


def branch(**options) -> LSNetBranch:
    torch.manual_seed(0)
    model = LSNetBranch(**TINY, **options)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("attention_biases"):
            tensor.normal_()
    return model.eval()


def pyramid(**options) -> PIIP:
    torch.manual_seed(0)
    branches = [branch(), ViTBranch(32, 5, 2), ViTBranch(64, 5, 4)]
    options = {"out_interaction_indexes": [0, 1, 2, 3], "out_features": NAMES, "size_divisibility": 64, **options}
    return PIIP(branches, [256, 128, 64], GROUPS, {"num_heads": 4, "with_proj": True, "with_norm": True}, **options)


@pytest.mark.parametrize(
    ("size", "per_stride"), [("t", (1, 1, 3, 9, 11)), ("s", (1, 2, 3, 9, 11)), ("b", (1, 5, 7, 9, 11))]
)
def test_stem_and_downsampling_count_as_blocks(size, per_stride):
    with on_meta():
        model = LSNetBranch(**VARIANTS[size])
    dims = VARIANTS[size]["dims"]
    assert tuple(model.strides.count(s) for s in (4, 8, 16, 32, 64)) == per_stride
    assert list(dict.fromkeys(model.out_channels)) == [dims[0] // 2, *dims]
    assert model.strides == sorted(model.strides)
    assert len(model.strides) == model.num_blocks


@pytest.mark.parametrize("size", [(128, 192), (203, 333)])
def test_is_the_backbone_stage_by_stage(size):
    one, other = branch(bias_resize="matrix"), LSNet(**TINY).eval()
    other.load_state_dict(one.state_dict())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        state, maps = one.embed(image), {}
        for i, stride in enumerate(one.strides):
            state = one.run(state, i, i + 1)
            grid = tuple(-(-side // stride) for side in size)
            assert state.grid_size == grid
            assert state.tokens.shape == (1, grid[0] * grid[1], one.out_channels[i])
            maps[f"c{stride.bit_length() - 1}"] = state.tokens.transpose(1, 2).unflatten(2, grid)
        for name, want in other(image).items():
            torch.testing.assert_close(maps[name], want)
        whole = one.run(one.embed(image), 0, one.num_blocks)
    torch.testing.assert_close(whole.tokens, state.tokens)


def test_alone_it_has_a_map_of_stride_4():
    model = SingleBranch(branch(), NAMES, size_divisibility=64)
    outs = model(torch.randn(1, 3, 64, 128))
    assert {name: tuple(out.shape[1:]) for name, out in outs.items()} == {
        "c2": (8, 16, 32),
        "c3": (16, 8, 16),
        "c4": (24, 4, 8),
        "c5": (32, 2, 4),
        "c6": (64, 1, 2),
    }


def test_images_smaller_than_the_last_stride_are_refused():
    with pytest.raises(ConfigError, match="smaller than the last stride of 64"):
        branch().embed(torch.randn(1, 3, 48, 128))


def test_statistics_stay_frozen_in_training():
    model = branch().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = model.embed(torch.randn(2, 3, 64, 64))
    model.run(state, 0, model.num_blocks).tokens.square().mean().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())


def test_pyramid_with_transformers_has_maps_for_a_detector():
    model = pyramid().eval()
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == {
        f"c{k}": (64, 2**k) for k in range(2, 7)
    }
    neck = FPN(model, NAMES, 16).eval()
    assert neck.size_divisibility == 64
    outs = neck(torch.randn(1, 3, 128, 192))
    assert {name: tuple(out.shape[1:]) for name, out in outs.items()} == {
        f"p{k}": (16, 128 // 2**k, 192 // 2**k) for k in range(2, 7)
    }


def test_pyramid_learns_with_and_without_checkpointing_alike():
    image = torch.randn(1, 3, 128, 64)
    gradients = []
    for use in (False, True):
        model = pyramid(use_act_checkpoint=use).train()
        sum(out.square().mean() for out in model(image).values()).backward()
        assert all(p.grad is not None for p in model.branches.parameters())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
