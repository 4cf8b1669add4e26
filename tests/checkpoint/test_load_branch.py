"""Pretrained networks of every origin into the branches that the released models start with."""

import copy

import pytest
import timm
import torch

from piip.checkpoint import to_official
from piip.checkpoint.load import load_branch, load_weights
from piip.checkpoint.official import official_names
from piip.checkpoint.resize import resize_patch_embed, resize_pos_embed
from piip.modeling import PIIP, BEiTBranch, ConvNeXtBranch, InternViTBranch, SingleBranch, UniPerceiverBranch, ViTBranch

SIZE = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SCALES = [f"blocks.{i}.ls{k}.gamma" for i in range(2) for k in (1, 2)]


def small(name, **kwargs):
    """A network of timm with other sizes and random weights."""
    model = timm.create_model(name, **SIZE, **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_timm_beit_loads_name_for_name_and_computes_the_same():
    model = small("beitv2_base_patch16_224", img_size=64)
    branch = BEiTBranch(**SIZE, pretrain_img_size=64).eval()
    state = model.state_dict()
    report = load_branch(branch, state)
    assert report.complete
    # The class token takes part in timm's attention, so that single modules are compared.
    assert report.resized == [f"blocks.{i}.attn.relative_position_bias_table" for i in range(2)]
    assert {name.split(".")[0] for name in report.ignored} == {"cls_token", "fc_norm", "head"}
    ours, theirs, x = branch.blocks[1], model.blocks[1], torch.randn(1, 5, 32)
    torch.testing.assert_close(ours.mlp(ours.norm2(x)), theirs.mlp(theirs.norm2(x)))
    assert torch.equal(ours.ls2.gamma, theirs.gamma_2)
    bias = theirs.attn._get_rel_pos_bias()[:, :, 1:, 1:]
    assert torch.equal(ours.attn.bias(), bias)
    theirs.attn.relative_position_bias_table = None  # plain attention, like ours before the bias
    q, k, v = (t.unflatten(2, (2, 16)).transpose(1, 2) for t in ours.attn.project(x))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours.attn.proj(out), theirs.attn(x), rtol=1e-5, atol=1e-5)


def test_mae_has_no_layer_scale_and_its_decoder_is_ignored():
    model = small("vit_base_patch16_224.mae", img_size=64)
    state = dict(model.state_dict(), mask_token=torch.randn(1, 1, 16), decoder_pos_embed=torch.randn(1, 17, 16))
    state["decoder_blocks.0.norm1.weight"] = torch.randn(16)
    branch = InternViTBranch(**SIZE, pretrain_img_size=64)
    report = load_branch(branch, state)
    assert sorted(report.missing) == SCALES
    assert all((block.ls1.gamma == 1).all() for block in branch.blocks)
    assert {"cls_token", "mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight"} <= set(report.ignored)
    assert torch.equal(branch.pos_embed, model.pos_embed)
    assert (report.resized, report.mismatched, report.unexpected) == ([], [], [])


def test_dinov2_is_resized_from_patches_of_14_pixels():
    model = small("vit_small_patch14_dinov2", img_size=70)
    branch = InternViTBranch(**SIZE, pretrain_img_size=70)  # 4 x 4 patches of 16
    report = load_branch(branch, {**model.state_dict(), "mask_token": torch.randn(1, 32)})
    assert report.complete
    assert sorted(report.resized) == ["patch_embed.proj.weight", "pos_embed"]
    assert torch.equal(branch.patch_embed.proj.weight, resize_patch_embed(model.patch_embed.proj.weight, 16))
    assert torch.equal(branch.pos_embed, resize_pos_embed(model.pos_embed, 17))
    assert torch.equal(branch.blocks[1].ls2.gamma, model.blocks[1].ls2.gamma)


@torch.no_grad()
def test_augreg_computes_what_timm_does():
    model = small("vit_small_patch16_384.augreg_in21k_ft_in1k", img_size=96, class_token=False, global_pool="avg")
    branch = InternViTBranch(**SIZE, pretrain_img_size=96).eval()
    report = load_branch(branch, model.state_dict())
    assert sorted(report.missing) == SCALES
    image = torch.randn(1, 3, 96, 96)
    x = model.blocks(model.patch_embed(image) + model.pos_embed)
    torch.testing.assert_close(branch.run(branch.embed(image), 0, 2).tokens, x, rtol=1e-4, atol=1e-4)


def test_the_file_of_internvit_6b_has_the_names_of_the_branch():
    names = {
        f"blocks.{i}.{name}"
        for i in range(2)
        for name in (
            "norm1.weight", "attn.qkv.weight", "attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.weight",
            "attn.proj.bias", "ls1.gamma", "norm2.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
            "mlp.fc2.bias", "ls2.gamma",
        )
    } | {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}  # fmt: skip
    branch = InternViTBranch(**SIZE, qkv_bias=False, norm="RMS", qk_norm=True, layer_scale_init=0.1)
    assert set(branch.state_dict()) == names
    state = {name: torch.randn_like(tensor) for name, tensor in branch.state_dict().items()}
    state |= {"patch_embed.proj.weight": torch.randn(32, 3, 14, 14), "pos_embed": torch.randn(1, 257, 32)}
    report = load_branch(
        branch, {**state, "cls_token": torch.randn(1, 1, 32), "clip_projector.norm.weight": torch.ones(1)}
    )
    assert report.complete
    assert sorted(report.resized) == ["patch_embed.proj.weight", "pos_embed"]


def test_uniperceiver_has_its_released_names():
    branch = UniPerceiverBranch(**SIZE)
    names = official_names(branch)
    block = {f"{p}.{w}" for p in ("norm1", "norm2", "linear1", "linear2") for w in ("weight", "bias")}
    block |= {f"self_attn.{p}.{w}" for p in ("in_proj", "out_proj") for w in ("weight", "bias")}
    block |= {"gamma_1", "gamma_2"}
    assert set(names.values()) == {f"layers.{i}.{name}" for i in range(2) for name in block} | {
        "visual_embed.embeddings_norm.weight",
        "visual_embed.embeddings_norm.bias",
        "visual_embed.patch_embed.proj.weight",
        "visual_embed.patch_embed.proj.bias",
        "visual_embed.patch_embed.spatial_pos_embed.weight",
        "visual_embed.patch_embed.temporal_pos_embed.weight",
    }
    state = {theirs: torch.randn_like(branch.state_dict()[ours]) for ours, theirs in names.items()}
    assert (state["visual_embed.patch_embed.spatial_pos_embed.weight"].shape, len(branch.temporal_pos_embed)) == (
        (196, 32),
        8,
    )
    report = load_branch(branch, state)
    assert report.complete
    assert torch.equal(branch.blocks[1].attn.qkv.weight, state["layers.1.self_attn.in_proj.weight"])
    # As torch's own attention has it.
    torchs = {name.replace("in_proj.", "in_proj_"): tensor + 1 for name, tensor in state.items()}
    assert load_branch(branch, torchs).complete
    assert torch.equal(branch.blocks[1].attn.qkv.bias, torchs["layers.1.self_attn.in_proj_bias"])


def test_a_pyramid_of_all_plain_families_round_trips_through_the_released_names(tmp_path):
    def make():
        branches = [
            ViTBranch(**SIZE),
            InternViTBranch(**SIZE, norm="RMS", qk_norm=True, qkv_bias=False),
            UniPerceiverBranch(**SIZE),
            BEiTBranch(**SIZE, window_size=2),
        ]
        return PIIP(branches, [224, 160, 96, 64], 2, {"num_heads": 4})

    source, target = make(), make()
    state = {theirs: source.state_dict()[ours] for ours, theirs in official_names(source).items()}
    assert {"branch4.blocks.0.gamma_1", "branch3.blocks.0.ls1.gamma", "branch2.layers.0.gamma_1"} <= set(state)
    state["branch1.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    torch.save({"module": state}, tmp_path / "released.pth")
    report = load_weights(target, str(tmp_path / "released.pth"))
    assert report.complete
    assert report.ignored == ["branch1.blocks.0.attn.relative_position_index"]
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_positions_of_uniperceiver_are_resized():
    source, target = (UniPerceiverBranch(**SIZE, pretrain_img_size=pixels) for pixels in (64, 96))
    state = {theirs: source.state_dict()[ours] for ours, theirs in official_names(source).items()}
    report = load_branch(target, state)
    assert report.complete
    assert report.resized == ["spatial_pos_embed"]
    assert torch.equal(target.spatial_pos_embed, resize_pos_embed(source.spatial_pos_embed[None], 36)[0])


def by_timm(branch):
    return {name: torch.randn_like(tensor) for name, tensor in branch.state_dict().items()}


def by_release(branch):
    return {official_names(branch)[name]: tensor for name, tensor in by_timm(branch).items()}


@pytest.mark.parametrize("names", [by_timm, by_release])
@pytest.mark.parametrize(
    "branch",
    [
        BEiTBranch(**SIZE, window_size=2),
        UniPerceiverBranch(**SIZE),
        InternViTBranch(**SIZE, norm="RMS", qk_norm=True, qkv_bias=False),
        ConvNeXtBranch((1, 1, 1, 1), (8, 16, 24, 32)),
    ],
    ids=lambda branch: type(branch).__name__,
)
def test_one_network_as_start_goes_to_the_branch_of_its_family(tmp_path, branch, names):
    state = names(branch)
    torch.save({"model": {**state, "head.weight": torch.zeros(10, 32)}}, tmp_path / "net.pth")
    stages = isinstance(branch, ConvNeXtBranch)
    groups = [[[0, 0], [1, 1]], [[0, 2], [3, 6]] if stages else [[0, 0], [1, 1]]]
    # The other branch is as wide and as deep.
    model = PIIP([ViTBranch(**SIZE), copy.deepcopy(branch)], [224, 160], groups, {"num_heads": 4})
    report = load_weights(model, str(tmp_path / "net.pth"))
    assert report.ignored == ["branches.1.head.weight"]
    # All else of the model is told to be missing.
    assert sorted(report.missing) == sorted(n for n in model.state_dict() if not n.startswith("branches.1."))
    assert not report.mismatched
    own = names(model.branches[1]).keys()
    assert own == state.keys()
    loaded = model.branches[1].state_dict()
    theirs = dict(zip(loaded, loaded, strict=True)) if names is by_timm else official_names(model.branches[1])
    assert all(torch.equal(tensor, state[theirs[name]]) for name, tensor in loaded.items())


def test_a_bare_single_branch_backbone_is_loaded_with_its_neck(tmp_path):
    source, target = SingleBranch(ViTBranch(**SIZE)), SingleBranch(ViTBranch(**SIZE))
    torch.save(to_official(source), tmp_path / "bare.pth")
    report = load_weights(target, str(tmp_path / "bare.pth"))
    assert report.complete
    assert sorted(report.loaded) == sorted(target.state_dict())
