"""The ConvNeXt branch: its blocks, its names in other libraries, grids that do not divide."""

import copy

import pytest
import timm
import torch

from piip.checkpoint import build_from_official, load_official
from piip.checkpoint.load import load_branch
from piip.checkpoint.official import official_names
from piip.errors import ConfigError
from piip.modeling import ConvNeXtBranch, SingleBranch
from piip.modeling.without_weights import on_meta

DEPTHS, DIMS = (2, 1, 2, 1), (8, 16, 32, 64)


def timm_convnext():
    torch.manual_seed(0)
    return timm.create_model("convnext_atto", depths=DEPTHS, dims=DIMS, conv_mlp=False, ls_init_value=0.5).eval()


def run(branch, image):
    return branch.run(branch.embed(image), 0, branch.num_blocks)


def test_is_timms_network_stage_by_stage():
    model, branch = timm_convnext(), ConvNeXtBranch(DEPTHS, DIMS).eval()
    report = load_branch(branch, model.state_dict())
    assert not report.missing
    image = torch.randn(2, 3, 64, 96)
    want = model.forward_intermediates(image, intermediates_only=True)
    got = SingleBranch(branch)(image)
    assert list(got) == ["c2", "c3", "c4", "c5"]
    for a, b in zip(got.values(), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("size", "blocks"), [("tiny", 21), ("small", 39), ("base", 39)])
def test_downsampling_counts_as_a_block(size, blocks):
    with on_meta():
        branch = build_from_official("ConvNextHFWrapper", {"pretrained": f"facebook/convnext-{size}-224"}).branch
    assert branch.num_blocks == len(branch.strides) == blocks
    assert [branch.strides.count(s) for s in (4, 8, 16, 32)] == [3, 4, blocks - 11, 4]
    assert branch.out_channels[3] == 2 * branch.out_channels[2]
    assert branch.strides[2:4] == [4, 8]


def test_stepping_through_blocks_equals_running_them_at_once():
    branch = ConvNeXtBranch(DEPTHS, DIMS).eval()
    image = torch.randn(1, 3, 96, 64)
    state = branch.embed(image)
    for i in range(branch.num_blocks):
        state = branch.run(state, i, i + 1)
        assert state.tokens.shape == (1, state.grid_size[0] * state.grid_size[1], branch.out_channels[i])
        assert state.grid_size == (96 // branch.strides[i], 64 // branch.strides[i])
    torch.testing.assert_close(state.tokens, run(branch, image).tokens)


def test_odd_rows_and_columns_are_dropped():
    assert run(ConvNeXtBranch(DEPTHS, DIMS), torch.randn(1, 3, 98, 140)).grid_size == (3, 4)


@pytest.mark.parametrize("prefix", ["convnext_model.", "convnext.", ""])
def test_loads_the_names_of_transformers(prefix):
    model = timm_convnext()
    source, target = ConvNeXtBranch(DEPTHS, DIMS), ConvNeXtBranch(DEPTHS, DIMS)
    load_branch(source, model.state_dict())
    names, state = official_names(source), source.state_dict()
    theirs = {names[k].replace("convnext_model.", prefix): v for k, v in state.items()}
    assert f"{prefix}encoder.stages.1.downsampling_layer.0.weight" in theirs
    assert f"{prefix}encoder.stages.2.layers.1.layer_scale_parameter" in theirs
    theirs |= {f"{prefix}layernorm.weight": torch.ones(64), "classifier.weight": torch.ones(5, 64)}
    assert not load_branch(target, theirs).missing
    assert all(torch.equal(target.state_dict()[k], v) for k, v in state.items())


def test_the_unused_norm_of_released_checkpoints_is_ignored():
    backbone = SingleBranch(ConvNeXtBranch(DEPTHS, DIMS))
    tensors = {names: backbone.state_dict()[k] for k, names in official_names(backbone).items()}
    report = load_official(backbone, {**tensors, "convnext_model.layernorm.weight": torch.ones(64)})
    assert report.complete
    assert report.ignored == ["convnext_model.layernorm.weight"]


def test_stochastic_depth_grows_over_all_blocks():
    branch = ConvNeXtBranch((2, 2, 2, 2), DIMS, drop_path_rate=0.7)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in branch.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)


def test_no_layer_has_its_own_learning_rate():
    branch = ConvNeXtBranch(DEPTHS, DIMS)
    assert {branch.layer_id(name) for name, _ in branch.named_parameters()} == {None}


def test_activation_checkpointing_changes_nothing():
    plain = ConvNeXtBranch(DEPTHS, DIMS, drop_path_rate=0.5, layer_scale_init=0.5).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    image = torch.randn(2, 3, 64, 64)
    for branch in (plain, saving):
        torch.manual_seed(1)
        run(branch, image).tokens.square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad.abs().sum() > 0, name
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depths": (3, 3, 9)}, r"depths=\[3, 3, 9\] must be four"),
        ({"dims": (8, 16, 32, 0)}, r"dims=\[8, 16, 32, 0\]"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        ConvNeXtBranch(**{"depths": DEPTHS, "dims": DIMS, **kwargs})


def test_images_below_the_last_stride_are_refused():
    with pytest.raises(ConfigError, match=r"\(64, 31\) pixels.*last stride of 32"):
        ConvNeXtBranch(DEPTHS, DIMS).embed(torch.randn(1, 3, 64, 31))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrained": "facebook/convnextv2-tiny-1k-224"}, "convnextv2-tiny.*no known ConvNeXt.*convnext-tiny-224"),
        ({"pretrained": "facebook/convnext-tiny-224", "downsample_ratios": [4] * 21}, "downsample_ratios.*21 blocks"),
        ({"pretrained": "facebook/convnext-tiny-224", "depth": 12}, r"\['depth'\]"),
    ],
)
def test_released_settings_that_do_not_fit_are_named(settings, message):
    with on_meta(), pytest.raises(ConfigError, match=message):
        build_from_official("ConvNextHFWrapper", settings)
