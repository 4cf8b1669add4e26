"""The Uni-Perceiver branch: its embedding and its blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piip.checkpoint.load import load_branch
from piip.checkpoint.official import official_names
from piip.errors import ConfigError
from piip.modeling import PIIP, UniPerceiverBranch
from piip.modeling.without_weights import on_meta


def make(**kwargs):
    torch.manual_seed(0)
    return UniPerceiverBranch(32, 2, 2, **{"pretrain_img_size": 64, "layer_scale_init": 1.0, **kwargs}).eval()


@torch.no_grad()
def test_patches_get_places_and_the_first_moment_before_the_norm():
    branch = make()
    image = torch.randn(2, 3, 64, 96)
    state = branch.embed(image)
    assert state.grid_size == (4, 6)
    place = branch.spatial_pos_embed.T.view(1, 32, 4, 4)
    place = F.interpolate(place, size=(4, 6), mode="bicubic", align_corners=False)
    x = branch.patch_embed.proj(image) + place + branch.temporal_pos_embed[0].view(1, 32, 1, 1)
    want = F.layer_norm(x.flatten(2).transpose(1, 2), (32,), branch.embed_norm.weight, branch.embed_norm.bias, 1e-5)
    torch.testing.assert_close(state.tokens, want, rtol=1e-5, atol=1e-5)
    # On the grid of the pretraining, the table is taken as it is.
    x = branch.patch_embed.proj(image[..., :64]).flatten(2).transpose(1, 2)
    want = branch.embed_norm(x + branch.spatial_pos_embed + branch.temporal_pos_embed[0])
    torch.testing.assert_close(branch.embed(image[..., :64]).tokens, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_blocks_equal_torchs_encoder_layers_whose_weights_they_load():
    branch = make()
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", 1e-5, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    ).eval()
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = branch.embed(torch.randn(1, 3, 64, 64))
    # The layers have neither an embedding nor residual scales.
    own = {theirs: branch.state_dict()[name] for name, theirs in official_names(branch).items()}
    rest = {name: tensor for name, tensor in own.items() if "visual" in name or "gamma" in name}
    report = load_branch(branch, {**rest, **layers.state_dict()})
    assert report.complete
    assert report.ignored == []
    torch.testing.assert_close(branch.run(state, 0, 2).tokens, layers(state.tokens), rtol=1e-4, atol=1e-4)


def test_windows_are_padded_with_tokens_not_with_keys():
    branch = make(window_size=3)
    nn.init.normal_(branch.blocks[0].attn.qkv.bias)
    x = torch.randn(1, 16, 32)
    padded = F.pad(x.view(1, 4, 4, 32), (0, 0, 0, 2, 0, 2))
    q, k, v = branch.blocks[0].attn.qkv(padded[:, :3, 3:].flatten(1, 2)).unflatten(2, (3, 2, 16)).unbind(2)
    want = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    got = branch.attend(branch.blocks[0].attn, x, 3, (4, 4)).view(1, 4, 4, 32)
    # Of the upper right window only the first column is in the grid.
    torch.testing.assert_close(got[:, :3, 3], want.transpose(1, 2).flatten(2)[:, ::3], rtol=1e-5, atol=1e-5)


def test_everything_learns_from_the_first_step_on():
    model = PIIP([UniPerceiverBranch(32, 2, 2)], [224], 2)
    sum(x.square().mean() for x in model(torch.randn(1, 3, 64, 64)).values()).backward()
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_published_sizes_and_depths():
    with on_meta():
        branches = [UniPerceiverBranch(768, 12, 12, drop_path_rate=0.11), UniPerceiverBranch(1024, 24, 16)]
    assert [sum(p.numel() for p in b.parameters()) for b in branches] == [85821696, 303356928]
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in branches[0].blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])
    assert {branches[0].layer_id(name) for name, _ in branches[0].named_parameters()} == set(range(13))


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="num_heads=3 does not divide embed_dim=32"):
        UniPerceiverBranch(32, 2, 3)
    with pytest.raises(ConfigError, match=r"8, 64.* smaller than one patch of 16"):
        make().embed(torch.zeros(1, 3, 8, 64))
