"""The BEiT branch: relative positions, windows, bad settings."""

import copy

import pytest
import torch
from timm.layers import DropPath

from piip.errors import ConfigError
from piip.modeling import PIIP, BEiTBranch
from piip.modeling.branches.beit import relative_position_index
from piip.modeling.without_weights import on_meta


def beit(window_size=0, **kwargs):
    """A small branch in which everything has an effect."""
    torch.manual_seed(0)
    branch = BEiTBranch(32, 2, 2, **{"window_size": window_size, "pretrain_img_size": 64, **kwargs})
    for name, parameter in branch.named_parameters():
        if name.endswith(("gamma", "bias", "table")):
            torch.nn.init.normal_(parameter, std=0.5)
    return branch.eval()


def attention(block, x, side):
    """BEiT's attention over all tokens, spelled out."""
    attn, heads = block.attn, 2
    q, k, v = ((x @ w.T).unflatten(2, (heads, -1)).transpose(1, 2) for w in attn.qkv.weight.chunk(3))
    q = q + attn.q_bias.view(heads, 1, -1)
    v = v + attn.v_bias.view(heads, 1, -1)
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    for i in range(side**2):
        for j in range(side**2):
            rows, columns = i // side - j // side, i % side - j % side
            place = (rows + side - 1) * (2 * side - 1) + columns + side - 1
            logits[:, :, i, j] += attn.relative_position_bias_table[place]
    return attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_blocks_compute_what_the_paper_says():
    branch = beit()
    state = branch.embed(torch.randn(2, 3, 64, 64))
    x, block = state.tokens, branch.blocks[0]
    want = x + block.ls1.gamma * attention(block, block.norm1(x), 4)
    want = want + block.ls2.gamma * block.mlp(block.norm2(want))
    torch.testing.assert_close(branch.run(state, 0, 1).tokens, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_global_attention_equals_one_window_over_the_grid():
    glob, wind = beit(), beit(window_size=4)
    wind.load_state_dict(glob.state_dict())
    image = torch.randn(1, 3, 64, 64)
    want = glob.run(glob.embed(image), 0, 2).tokens
    torch.testing.assert_close(wind.run(wind.embed(image), 0, 2).tokens, want, rtol=1e-5, atol=1e-5)


def test_the_stored_index_leads_to_the_row_of_every_offset():
    index = relative_position_index(3)
    assert index.shape == (9, 9)
    # From the first token to the last, to itself, and back.
    assert (index[0, 8], index[4, 4], index[8, 0]) == (0, 12, 24)
    assert sorted(set(index.flatten().tolist())) == list(range(25))


def test_global_attention_refuses_another_grid():
    branch = beit()
    with pytest.raises(ConfigError, match="4 x 4 tokens, and the grid is 4 x 6; set window_size"):
        branch.run(branch.embed(torch.randn(1, 3, 64, 96)), 0, 2)
    assert beit(window_size=[3, 5]).blocks[1].attn.relative_position_bias_table.shape == (81, 2)


def test_everything_learns_and_recomputing_changes_nothing():
    plain = PIIP([beit(window_size=[3, 0])], [64], 2).train()
    saving, grads = copy.deepcopy(plain), []
    saving.set_grad_checkpointing()
    image = torch.randn(1, 3, 64, 64)
    for model in (plain, saving):
        sum(x.square().mean() for x in model(image).values()).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(g.abs().sum() > 0 for g in grads[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_positions_stay_out_of_the_state_dict_and_depth_grows_linearly():
    branch = BEiTBranch(32, 3, 2, drop_path_rate=0.2)
    assert {name for name in branch.state_dict() if "pos" in name} == {
        f"blocks.{i}.attn.relative_position_bias_table" for i in range(3)
    }
    assert isinstance(branch.blocks[2].drop_path1, DropPath)
    assert [getattr(b.drop_path2, "drop_prob", 0) for b in branch.blocks] == pytest.approx([0, 0.1, 0.2])
    assert {branch.layer_id(name) for name, _ in branch.named_parameters()} == {0, 1, 2, 3}


def test_published_sizes():
    with on_meta():
        branches = [BEiTBranch(768, 12, 12, window_size=28), BEiTBranch(1024, 24, 16, window_size=28)]
    assert [sum(p.numel() for p in b.parameters()) for b in branches] == [86089872, 304283008]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window_size": [4]}, r"window_size=\[4\].*depth is 2"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"pretrain_img_size": 8}, "pretrain_img_size=8 .*patch_size=16"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        BEiTBranch(32, 2, 2, **kwargs)
