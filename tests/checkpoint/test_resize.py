"""Pretrained tensors for another patch size, position grid or window, against the released loaders' results."""

import pytest
import torch

from piip.checkpoint.load import load_branch
from piip.checkpoint.official import official_names
from piip.checkpoint.resize import resize_patch_embed, resize_pos_embed, resize_relative_position_bias
from piip.errors import CheckpointError
from piip.modeling import BEiTBranch
from tests import reference


@pytest.fixture(scope="module")
def data():
    return reference.arrays("piip/pretrained_resize")


@pytest.mark.parametrize("name", ["deit_224", "deit_384_nocls", "dinov2_518_p14", "internvit_224_p14", "augreg_384"])
def test_positions_and_patches_become_what_the_released_loaders_make_of_them(data, name):
    want = data[f"{name}_pos_embed_out"]
    got = resize_pos_embed(data[f"{name}_pos_embed_in"], want.shape[1])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    want = data[f"{name}_patch_weight_out"]
    got = resize_patch_embed(data[f"{name}_patch_weight_in"], want.shape[-1])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_leading_position_is_kept_dropped_or_zero_as_the_branch_has_one():
    pos = torch.randn(1, 17, 8)
    assert torch.equal(resize_pos_embed(pos, 16), pos[:, 1:])
    assert torch.equal(resize_pos_embed(pos[:, 1:], 17), torch.cat([torch.zeros(1, 1, 8), pos[:, 1:]], 1))
    assert torch.equal(resize_pos_embed(pos, 37)[:, 0], pos[:, 0])
    with pytest.raises(CheckpointError, match="18 rows"):
        resize_pos_embed(torch.randn(1, 18, 8), 16)


@pytest.mark.parametrize("windows", ["14_to_28", "14_to_14", "14_to_8"])
def test_relative_positions_become_what_the_released_loader_makes_of_them(data, windows):
    want = data[f"relpos_{windows}_out"]
    got = resize_relative_position_bias(data[f"relpos_{windows}_in"], want.shape[0])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    # Rows for a class token make no difference, and half precision stays what it is.
    without = data[f"relpos_{windows}_in"][:-3].bfloat16()
    assert resize_relative_position_bias(without, want.shape[0]).dtype == torch.bfloat16


def released(branch):
    state = branch.state_dict()
    return {theirs: state[ours].clone() for ours, theirs in official_names(branch).items()}


def test_a_branch_takes_tables_of_another_window_with_class_token():
    source, target = BEiTBranch(32, 2, 2, window_size=4), BEiTBranch(32, 2, 2, window_size=[7, 4])
    state = released(source)
    for i in range(2):
        name = f"blocks.{i}.attn.relative_position_bias_table"
        state[name] = torch.randn(52, 2)
        state[f"blocks.{i}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    report = load_branch(target, state)
    assert report.complete
    assert report.resized == [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)]
    assert report.ignored == [f"blocks.{i}.attn.relative_position_index" for i in range(2)]
    tables = [block.attn.relative_position_bias_table for block in target.blocks]
    assert torch.equal(
        tables[0], resize_relative_position_bias(state["blocks.0.attn.relative_position_bias_table"], 169)
    )
    assert torch.equal(tables[1], state["blocks.1.attn.relative_position_bias_table"][:49])


def test_a_table_that_all_blocks_share_goes_to_each_of_them():
    source, target = BEiTBranch(32, 2, 2, window_size=4), BEiTBranch(32, 2, 2, window_size=4)
    state = {name: tensor for name, tensor in released(source).items() if "table" not in name}
    state["rel_pos_bias.relative_position_bias_table"] = torch.randn(52, 2)
    report = load_branch(target, state)
    assert report.complete
    assert report.ignored == []
    for block in target.blocks:
        assert torch.equal(
            block.attn.relative_position_bias_table, state["rel_pos_bias.relative_position_bias_table"][:49]
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((48, 2), r"blocks\.1\.attn\.relative_position_bias_table \(48 rows, 2 heads\): .*belong to no window"),
        ((64, 2), r"\(64 rows, 2 heads\): .*belong to no window"),
        ((9, 2), r"\(9 rows, 2 heads\): .*too few"),
        ((49, 4), r"\(49 rows, 4 heads\) is for another number of heads than 2"),
    ],
)
def test_tables_that_cannot_be_resampled_are_named_and_change_nothing(table, message):
    branch = BEiTBranch(32, 2, 2, window_size=7)
    before = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    state = {name: torch.randn_like(tensor) for name, tensor in released(branch).items()}
    state["blocks.1.attn.relative_position_bias_table"] = torch.randn(table)
    with pytest.raises(CheckpointError, match=message):
        load_branch(branch, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in branch.state_dict().items())
