"""Released class names and constructor arguments become our modules."""

import pytest
import torch

from piip.checkpoint import build_from_official
from piip.errors import ConfigError
from piip.modeling import BEiTBranch, InternViTBranch, UniPerceiverBranch, ViTBranch

PIIP_ARGS = {
    "n_points": 4, "deform_num_heads": 16, "with_cffn": True, "cffn_ratio": 0.25, "deform_ratio": 0.5,
    "interact_attn_type": "deform", "interaction_drop_path_rate": 0.4,
}  # fmt: skip
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
BEIT = {"qkv_bias": True, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 1e-6}
INTERNVIT = {"qkv_bias": True, "norm_layer_type": "LayerNorm", "init_values": 1.0, "qk_normalization": False}
DEIT = {"qkv_bias": True, "init_scale": 1.0, "use_flash_attn": True, "with_fpn": False}


def branch(size, resolution, pretrained, **kwargs):
    width, depth, heads = SIZES[size]
    return {
        "real_size": resolution, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4,
        "patch_size": 16, "pretrained": f"./pretrained/{pretrained}.pth", "drop_path_rate": 0.4,
        "interaction_indexes": [[i * depth // 12, (i + 1) * depth // 12 - 1] for i in range(12)],
        "window_attn": [True] * depth, "window_size": [28] * depth, **kwargs,
    }  # fmt: skip


def sbl(large, base, small=("deit_3_small_224_21k", DEIT)):
    settings = [("l", 672, large), ("b", 1120, base), ("s", 1568, small)]
    args = {f"branch{k}": branch(size, r, name, **own) for k, (size, r, (name, own)) in enumerate(settings, 1)}
    with torch.device("meta"):
        return build_from_official("PIIPThreeBranch", {**PIIP_ARGS, **args})


@pytest.mark.parametrize(
    ("pretrained", "own", "kinds", "params"),
    [
        ("beitv2_{}_patch16_224_pt1k_ft21k", BEIT, BEiTBranch, 549022227),
        ("uni-perceiver-{}-224size-pretrained_converted", {}, UniPerceiverBranch, 547827971),
        ("mae_pretrain_vit_{}", INTERNVIT, InternViTBranch, 547811843),
    ],
)
def test_families_follow_from_the_pretrained_path(pretrained, own, kinds, params):
    model = sbl(*((pretrained.format(size), own) for size in ("large", "base")))
    assert [type(b) for b in model.branches] == [ViTBranch, kinds, kinds]
    assert [b.window_sizes[-1] for b in model.branches] == [28] * 3
    assert sum(p.numel() for p in model.parameters()) == params


def test_dinov2_in_all_three_branches():
    own = {**INTERNVIT, "pretrain_img_size": 518, "pretrain_patch_size": 14}
    model = sbl(("dinov2_vitl14_pretrain", own), ("dinov2_vitb14_pretrain", own), ("dinov2_vits14_pretrain", own))
    assert {type(b) for b in model.branches} == {InternViTBranch}
    assert sum(p.numel() for p in model.parameters()) == 549613955


def test_arguments_of_uniperceiver_and_beit_reach_the_branch():
    small = {"embed_dim": 64, "num_heads": 4}
    large = branch("l", 672, "uni-perceiver-large", **small, window_size=[14] * 24, init_values=0.5)
    large["num_attention_heads"] = large.pop("num_heads")
    own = {**BEIT, **small, "init_values": 0.1, "window_attn": False, "pretrain_img_size": 128}
    model = build_from_official(
        "PIIPTwoBranch", {**PIIP_ARGS, "branch1": large, "branch2": branch("b", 1120, "beitv2_base", **own)}
    )
    assert model.branches[1].window_sizes == [14] * 24
    assert model.branches[1].num_heads == 4
    assert (model.branches[1].blocks[3].ls1.gamma == 0.5).all()
    assert model.branches[0].window_sizes == [0] * 12
    assert model.branches[0].blocks[0].attn.relative_position_bias_table.shape == (15**2, 4)
    assert (model.branches[0].blocks[3].ls2.gamma == 0.1).all()


@pytest.mark.parametrize(
    ("pretrained", "own", "message"),
    [
        (
            "beitv2_base",
            {**BEIT, "use_abs_pos_emb": True},
            "use_abs_pos_emb=True .*'./pretrained/beitv2_base.pth' is not",
        ),
        ("beitv2_base", {**BEIT, "use_rel_pos_bias": False}, "use_rel_pos_bias=False .*is not supported"),
        ("beitv2_base", {}, "qkv_bias=False .*released models have True"),
        ("beitv2_base", {**BEIT, "layerscale": 1}, r"\['layerscale'\].* are unknown"),
        ("uni-perceiver-base", {"qkv_bias": False}, "qkv_bias=False .*is not supported"),
        ("uni-perceiver-base", {"frames": 8}, r"\['frames'\].*uni-perceiver-base.* are unknown"),
        ("mae_base", {"norm_layer_type": "BatchNorm"}, "norm_layer_type='BatchNorm' is unknown"),
    ],
)
def test_arguments_of_other_models_are_named(pretrained, own, message):
    args = {"branch1": branch("l", 672, "deit", **DEIT), "branch2": branch("b", 1120, pretrained, **own)}
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_from_official("PIIPTwoBranch", {**PIIP_ARGS, **args})
