"""Networks of timm as branches: the same features as timm computes, for every kind that can be run block by block."""

import copy

import pytest
import timm
import torch
from torch import nn

from piip.checkpoint import load_pretrained
from piip.checkpoint.load import load_branch
from piip.errors import CheckpointError, ConfigError
from piip.modeling import PIIP, SingleBranch, TimmBranch

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 32, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}

# name -> options that make it small, number of blocks, patch size.
TOKENS = {
    "test_vit": ({}, 6, 16),
    "deit_tiny_distilled_patch16_224": (SMALL, 3, 16),
    "vit_base_patch16_siglip_224": (SMALL, 3, 16),
    "vit_small_patch14_dinov2": ({**SMALL, "img_size": 112}, 3, 14),
    "vit_small_patch14_reg4_dinov2": ({**SMALL, "img_size": 112}, 3, 14),
    "eva02_base_patch14_224": (SMALL, 3, 14),
    "vit_small_patch16_dinov3": (SMALL, 3, 16),
    "vit_small_patch16_rope_mixed_224": (SMALL, 3, 16),
}
# name -> options that make it small, what timm runs after the last block, strides.
MAPS = {
    "test_convnext": ({}, ["norm_pre"], [4, 8, 16, 32]),
    "swin_tiny_patch4_window7_224": (SWIN, ["norm"], [4, 8, 16, 32]),
    "swinv2_tiny_window8_256": (SWIN, ["norm"], [4, 8, 16, 32]),
    "test_resnet": ({}, [], [4, 8, 16, 32]),
    "regnety_002": ({}, ["final_conv"], [4, 8, 16, 32]),
    "test_efficientnet": ({}, ["conv_head", "bn2"], [2, 4, 8, 16, 32]),
    "pvt_v2_b0": ({}, [], [4, 8, 16, 32]),
    "test_mambaout": ({}, ["norm"], [4, 8, 16, 32]),
}


def pair(name, options):
    """timm's own network and a branch with its weights."""
    torch.manual_seed(0)
    sizes = {"strict_img_size": False} if "swin" in name else {"dynamic_img_size": True} if name in TOKENS else {}
    model = timm.create_model(name, **sizes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # nothing stays at a neutral value
    branch = TimmBranch(name, weights=None, **options).eval()
    report = load_branch(branch, model.state_dict())
    assert report.missing == report.mismatched == report.resized == []
    return model, branch


def walk(branch, image):
    """All blocks one after the other, and what the branch says about each."""
    with torch.no_grad():
        state = branch.embed(image)
        for i in range(branch.num_blocks):
            state = branch.run(state, i, i + 1)
            assert state.grid_size == tuple(side // branch.strides[i] for side in image.shape[2:])
            assert state.tokens.shape[1:] == (state.grid_size[0] * state.grid_size[1], branch.out_channels[i])
        at_once = branch.run(branch.embed(image), 0, branch.num_blocks)
    torch.testing.assert_close(at_once.tokens, state.tokens)
    return state


@pytest.mark.parametrize("name", TOKENS)
def test_transformers_compute_what_timm_computes(name):
    options, blocks, patch = TOKENS[name]
    model, branch = pair(name, options)
    model.norm = nn.Identity()
    assert (branch.num_blocks, set(branch.strides), branch.embed_stride) == (blocks, {patch}, patch)
    native = model.patch_embed.img_size[0]
    for size in ((native, native), (5 * patch, 7 * patch)):
        image = torch.randn(2, 3, *size)
        state = walk(branch, image)
        got = state.tokens if state.prefix is None else torch.cat([state.prefix, state.tokens], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(got, model.forward_features(image))


@pytest.mark.parametrize("name", MAPS)
def test_networks_in_stages_compute_what_timm_computes(name):
    options, tail, strides = MAPS[name]
    model, branch = pair(name, options)
    for part in tail:
        setattr(model, part, nn.Identity())
    assert sorted(set(branch.strides)) == strides
    for size in ((256, 256), (160, 224)):
        image = torch.randn(2, 3, *size)
        state = walk(branch, image)
        with torch.no_grad():
            want = model.forward_features(image)
        want = want.flatten(1, 2) if branch.channels_last else want.flatten(2).transpose(1, 2)
        torch.testing.assert_close(state.tokens, want)


def test_stages_whose_parts_do_not_follow_each_other_are_one_block():
    assert TimmBranch("pvt_v2_b0", weights=None).num_blocks == 4
    assert TimmBranch("test_mambaout", weights=None).num_blocks == 9


def test_a_network_in_stages_is_a_backbone():
    backbone = SingleBranch(TimmBranch("test_resnet", weights=None))
    shapes = backbone.output_shape()
    for name, x in backbone(torch.randn(1, 3, 64, 96)).items():
        assert x.shape == (1, shapes[name].channels, 64 // shapes[name].stride, 96 // shapes[name].stride)


def test_networks_of_some_sizes_only_say_so():
    branch = TimmBranch("maxvit_rmlp_pico_rw_256", weights=None).eval()
    assert walk(branch, torch.randn(1, 3, 256, 256)).grid_size == (8, 8)
    with pytest.raises(ConfigError, match=r"block \d+ of maxvit_rmlp_pico_rw_256.*set img_size"):
        branch.run(branch.embed(torch.randn(1, 3, 192, 192)), 0, branch.num_blocks)


def test_pixels_that_make_no_whole_patch_are_dropped():
    branch = TimmBranch("test_vit", weights=None).eval()
    image = torch.randn(1, 3, 79, 50)
    assert branch.embed(image).grid_size == (4, 3)
    assert torch.equal(branch.embed(image).tokens, branch.embed(image[:, :, :64, :48]).tokens)
    with pytest.raises(ConfigError, match="smaller than one patch of 16"):
        branch.embed(torch.randn(1, 3, 64, 15))
    with pytest.raises(ConfigError, match="last stride of 32"):
        TimmBranch("test_resnet", weights=None).embed(torch.randn(1, 3, 64, 16))


def test_another_patch_size_takes_resized_weights():
    model = timm.create_model("eva02_base_patch14_224", **SMALL)
    branch = TimmBranch("eva02_base_patch14_224", weights=None, patch_size=16, img_size=320, **SMALL)
    report = load_branch(branch, model.state_dict())
    assert sorted(report.resized) == ["stem.patch_embed.proj.weight", "stem.pos_embed"]
    assert branch.embed(torch.randn(1, 3, 64, 96)).grid_size == (4, 6)


def test_files_with_the_names_of_an_original_release_load():
    model = timm.create_model("swin_tiny_patch4_window7_224", **SWIN)
    # The original has the downsampling at the end of a stage.
    original = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        original[".".join(parts).replace("head.fc.", "head.")] = tensor
    branch = TimmBranch("swin_tiny_patch4_window7_224", weights=None, **SWIN)
    assert not load_branch(branch, original).missing
    assert torch.equal(branch.blocks[1].reduction.weight, model.layers[1].downsample.reduction.weight)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_local_file_is_loaded_by_timms_names(name, tmp_path):
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = SingleBranch(TimmBranch(name, weights=str(tmp_path / "weights.pth")))
    assert load_pretrained(backbone).missing == []
    for key, value in backbone.branch.state_dict().items():
        assert torch.equal(value, model.state_dict()[backbone.branch.timm_name(key)])


def test_weights_of_another_network_are_refused():
    with pytest.raises(CheckpointError, match=r"timm's rules for test_vit|only 0 of"):
        load_branch(TimmBranch("test_vit", weights=None), timm.create_model("test_resnet").state_dict())


def test_names_and_weights():
    branch = TimmBranch("test_vit.r160_in1k")
    assert branch.weights == "timm://test_vit.r160_in1k"
    assert TimmBranch("test_vit", weights="piip://x.pth").weights == "piip://x.pth"
    assert branch.timm_name("stem.patch_embed.proj.weight") == "patch_embed.proj.weight"
    assert branch.timm_name("blocks.5.attn.qkv.bias") == "blocks.5.attn.qkv.bias"
    staged = TimmBranch("test_resnet", weights=None)
    assert set(map(staged.timm_name, staged.state_dict())) <= set(timm.create_model("test_resnet").state_dict())


def test_layer_ids():
    branch = TimmBranch("test_vit", weights=None)
    ids = {name: branch.layer_id(name) for name, _ in branch.named_parameters()}
    assert set(ids.values()) == set(range(7))
    assert ids["stem.cls_token"] == ids["stem.patch_embed.proj.bias"] == 0
    assert ids["blocks.2.norm1.weight"] == 3
    staged = TimmBranch("test_resnet", weights=None)
    assert {staged.layer_id(name) for name, _ in staged.named_parameters()} == {None}


def test_rotary_positions_are_the_same_in_training():
    branch = TimmBranch("vit_small_patch16_dinov3", weights=None, **SMALL)
    assert branch.training
    image = torch.randn(1, 3, 64, 64)
    once, twice = (branch.run(branch.embed(image), 0, 3).tokens for _ in range(2))
    assert torch.equal(once, twice)


def pyramid():
    """Class and register tokens, rotary positions, and a network in stages, all in one."""
    branches = [
        TimmBranch("vit_small_patch16_dinov3", weights=None, drop_path_rate=0.3, **SMALL),
        TimmBranch("swin_tiny_patch4_window7_224", weights=None, drop_path_rate=0.3, **SWIN),
        TimmBranch("vit_small_patch14_reg4_dinov2", weights=None, patch_size=16, **{**SMALL, "embed_dim": 64}),
    ]
    return PIIP(branches, [192, 128, 64], 3, {"num_heads": 4})


def test_every_parameter_of_a_pyramid_learns():
    torch.manual_seed(0)
    model = pyramid()
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.constant_(parameter, 0.5)
        elif name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.02)
    model.eval()
    sum(x.square().mean() for x in model(torch.randn(1, 3, 192, 192)).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_activation_checkpointing_changes_nothing():
    torch.manual_seed(0)
    plain = pyramid().train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    image, grads = torch.randn(1, 3, 192, 192), []
    for model in (plain, saving):
        torch.manual_seed(1)
        model(image)["c4"].square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (["vit_smal_patch16_224"], {}, r"no model 'vit_smal_patch16_224'.*Did you mean 'vit_small_patch16_224'"),
        (["test_vit.r160_in2k"], {}, r"no model 'test_vit.r160_in2k'.*'test_vit.r160_in1k'"),
        (["test_vit"], {"depht": 3}, "cannot build test_vit.*depht"),
        (["test_vit"], {"img_size": (160, 96)}, r"img_size=\(160, 96\).*must be square"),
        (["test_vit"], {"features_only": True}, "features_only=True"),
        (["test_vit"], {"drop_path_rate": 1.5}, "drop_path_rate=1.5"),
        (["densenet121"], {}, "densenet121.*cannot be run block by block; plain vision transformers"),
        (["beit_base_patch16_224"], {"depth": 1, "embed_dim": 24}, "beit_base_patch16_224.*block by block"),
        (["hiera_tiny_224"], {"embed_dim": 8, "stages": (1, 1, 1, 1)}, "hiera_tiny_224.*block by block"),
        (["samvit_base_patch16"], {"img_size": 64, "depth": 1, "embed_dim": 24}, "samvit_base_patch16.*by block"),
    ],
)
def test_bad_settings_are_named(args, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        TimmBranch(*args, weights=None, **kwargs)
