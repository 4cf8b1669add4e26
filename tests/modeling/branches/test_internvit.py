"""The released models' InternViT kind: positions, normalisation, stochastic depth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piip.errors import ConfigError
from piip.modeling import InternViTBranch, ViTBranch
from piip.modeling.without_weights import on_meta


def internvit(**kwargs):
    """The settings of InternViT-6B in small."""
    torch.manual_seed(0)
    settings = {"norm": "RMS", "qk_norm": True, "qkv_bias": False, "layer_scale_init": 0.1, "pretrain_img_size": 64}
    return InternViTBranch(32, 3, 2, **{**settings, **kwargs})


def rms(x, weight):
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@torch.no_grad()
def test_queries_and_keys_are_normalised_over_all_heads_together():
    branch = internvit().eval()
    block = branch.blocks[0]
    for norm in (block.attn.q_norm, block.attn.k_norm, block.norm1, block.norm2):
        nn.init.normal_(norm.weight, 1.0, 0.3)
    state = branch.embed(torch.randn(2, 3, 64, 64))
    x = state.tokens
    q, k, v = (rms(x, block.norm1.weight) @ block.attn.qkv.weight.T).chunk(3, -1)
    q, k = rms(q, block.attn.q_norm.weight), rms(k, block.attn.k_norm.weight)
    q, k, v = (t.unflatten(2, (2, 16)).transpose(1, 2) for t in (q, k, v))
    out = ((q @ k.transpose(2, 3) / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)
    want = x + block.ls1.gamma * block.attn.proj(out)
    want = want + block.ls2.gamma * block.mlp(rms(want, block.norm2.weight))
    torch.testing.assert_close(branch.run(state, 0, 1).tokens, want, rtol=1e-5, atol=1e-5)
    names = {name.removeprefix("blocks.0.") for name in branch.state_dict() if name.startswith("blocks.0.")}
    assert {"attn.q_norm.weight", "attn.k_norm.weight", "ls1.gamma", "norm1.weight"} <= names
    assert not {"attn.qkv.bias", "norm1.bias", "attn.q_norm.bias"} & names


@torch.no_grad()
def test_the_leading_position_is_there_and_has_no_effect():
    branch = internvit().eval()
    assert branch.pos_embed.shape == (1, 17, 32)
    other = copy.deepcopy(branch)
    other.pos_embed[:, 0] += 1
    image = torch.randn(1, 3, 48, 80)
    assert torch.equal(branch.embed(image).tokens, other.embed(image).tokens)
    # The others are those of a ViT without it.
    vit = ViTBranch(32, 3, 2, pretrain_img_size=64)
    vit.patch_embed.load_state_dict(branch.patch_embed.state_dict())
    vit.pos_embed.copy_(branch.pos_embed[:, 1:])
    assert torch.equal(branch.embed(image).tokens, vit.embed(image).tokens)


def test_stochastic_depth_grows_from_zero_to_the_rate():
    rates = [getattr(block.drop_path2, "drop_prob", 0) for block in internvit(drop_path_rate=0.4).blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    with pytest.raises(ConfigError, match=r"drop_path_rate=1\.5"):
        internvit(drop_path_rate=1.5)


def test_without_layer_scale_and_with_tanh_gelu():
    branch = InternViTBranch(32, 1, 2, layer_scale_init=None, activation="gelu_tanh").eval()
    assert not [name for name in branch.state_dict() if "gamma" in name]
    mlp, x = branch.blocks[0].mlp, torch.randn(1, 4, 32)
    want = mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
    torch.testing.assert_close(mlp(x), want)


@torch.no_grad()
def test_padded_tokens_look_like_the_bias():
    branch = InternViTBranch(32, 1, 2, window_size=3, pretrain_img_size=64).eval()
    attn = branch.blocks[0].attn
    nn.init.normal_(attn.qkv.bias)
    x = torch.randn(1, 4, 32)
    q, k, v = attn.qkv(F.pad(x.view(1, 2, 2, 32), (0, 0, 0, 1, 0, 1)).flatten(1, 2)).unflatten(2, (3, 2, 16)).unbind(2)
    want = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    got = branch.attend(attn, x, 3, (2, 2))
    torch.testing.assert_close(got, want.flatten(2).view(1, 3, 3, 32)[:, :2, :2].flatten(1, 2), rtol=1e-5, atol=1e-5)


def test_published_sizes():
    with on_meta():
        six_b = InternViTBranch(3200, 48, 25, norm="RMS", qk_norm=True, qkv_bias=False, layer_scale_init=0.1)
        others = [
            InternViTBranch(1280, 32, 16),
            InternViTBranch(768, 12, 12, pretrain_img_size=518),
            InternViTBranch(384, 12, 6, pretrain_img_size=384),
        ]
    sizes = [sum(p.numel() for p in branch.parameters()) for branch in (six_b, *others)]
    assert sizes == [5903174400, 630996480, 86450688, 21819648]
