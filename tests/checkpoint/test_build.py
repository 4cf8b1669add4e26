"""Released class names and constructor arguments become our modules."""

from functools import partial

import pytest
from torch import nn

from piip.checkpoint import build_from_official
from piip.errors import ConfigError
from piip.modeling import BEiTBranch, InternViTBranch, UniPerceiverBranch, ViTBranch
from piip.modeling.without_weights import on_meta

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
    with on_meta():
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
            "'./pretrained/beitv2_base.pth': use_abs_pos_emb=True is not",
        ),
        ("beitv2_base", {**BEIT, "use_rel_pos_bias": False}, "use_rel_pos_bias=False .*is not supported"),
        ("beitv2_base", {}, "qkv_bias=False .*released models have True"),
        ("beitv2_base", {**BEIT, "layerscale": 1}, r"\['layerscale'\].* are unknown"),
        ("uni-perceiver-base", {"qkv_bias": False}, "qkv_bias=False .*is not supported"),
        ("uni-perceiver-base", {"frames": 8}, r"\['frames'\].*uni-perceiver-base.* are unknown"),
        (
            "mae_base",
            {"norm_layer_type": "BatchNorm"},
            r"branch2 with .*mae_base.*norm_layer_type='BatchNorm' .*\['LayerNorm', 'RMSNorm'\]",
        ),
    ],
)
def test_arguments_of_other_models_are_named(pretrained, own, message):
    args = {"branch1": branch("l", 672, "deit", **DEIT), "branch2": branch("b", 1120, pretrained, **own)}
    with on_meta(), pytest.raises(ConfigError, match=message):
        build_from_official("PIIPTwoBranch", {**PIIP_ARGS, **args})


def two_branches(changes=()):
    """A pyramid of two small branches; changes are (path, value), where the value ``del`` takes the argument out."""
    deit = {**DEIT, "depth": 2, "num_heads": 2, "interaction_indexes": [[0, 0], [1, 1]], "window_attn": [True, False]}
    deit |= {"window_size": [4, -1], "pretrain_img_size": 64}
    args = {
        **PIIP_ARGS, "deform_num_heads": 2,
        "branch1": branch("b", 160, "deit", **{**deit, "embed_dim": 64}),
        "branch2": branch("s", 224, "deit", **{**deit, "embed_dim": 32}),
    }  # fmt: skip
    for path, value in changes:
        *parents, name = path.split(".")
        target = args
        for parent in parents:
            target = target[parent]
        if isinstance(value, str) and value == "del":
            del target[name]
        else:
            target[name] = value
    given = repr(args)
    try:
        with on_meta():
            return build_from_official("PIIPTwoBranch", args)
    finally:
        assert repr(args) == given, "the config is changed"


REQUIRED = ["depth", "embed_dim", "num_heads", "real_size or img_size", "interaction_indexes"]


@pytest.mark.parametrize("path", ["branch1", "branch2", *(f"branch2.{name}" for name in REQUIRED)])
def test_what_is_missing_is_named(path):
    owner, _, name = f"PIIPTwoBranch.{path}".rpartition(".")
    with pytest.raises(
        ConfigError, match=rf"^{owner}( with pretrained='./pretrained/deit.pth')? has no {name}; add it"
    ):
        two_branches([(path.partition(" ")[0], "del")])


def test_branches_without_arguments_are_named():
    with pytest.raises(ConfigError, match=r"PIIPTwoBranch\.branch1 has no real_size or img_size; add it to \[\]"):
        two_branches([("branch1", {})])
    with pytest.raises(ConfigError, match="the arguments of PIIPTwoBranch are None"):
        build_from_official("PIIPTwoBranch", None)
    with pytest.raises(ConfigError, match=r"ConvNextHFWrapper with pretrained=''.*names no known ConvNeXt"):
        build_from_official("ConvNextHFWrapper", {})
    for name in ("vit_models", "InternViT6B"):
        with pytest.raises(ConfigError, match=f"{name} with pretrained='' has no depth; add it"):
            build_from_official(name, {})
    with pytest.raises(ConfigError, match="released class 3 is unknown"):
        build_from_official(3, {})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("branch1", [1], r"branch1=\[1\] .*give a dict"),
        ("interact_attn_type", "defrom", r"='defrom' .*\['deform', 'normal'\]\. Did you mean 'deform'\?$"),
        ("interact_attn_type", None, "interact_attn_type=None"),
        ("norm_layer", "BN", "norm_layer='BN' .*give 'LayerNorm' .*or 'none'"),
        ("norm_layer", None, "norm_layer=None"),
        ("norm_layer", {"type": "BN"}, "norm_layer={'type': 'BN'}"),
        ("norm_layer", nn.BatchNorm2d, "norm_layer=.*BatchNorm2d"),
        ("norm_layer", partial(nn.LayerNorm, eps=1e-3), r"norm_layer=.*eps=0\.001.*with eps=1e-6"),
        ("deform_num_heads", "16", "deform_num_heads='16' .*whole number above 0"),
        ("n_points", 0, "n_points=0 .*whole number above 0"),
        ("n_points", True, "n_points=True .*whole number above 0"),
        ("deform_ratio", float("nan"), "deform_ratio=nan .*number above 0"),
        ("cffn_ratio", None, "cffn_ratio=None .*number above 0"),
        ("with_cffn", "yes", "with_cffn='yes' .*True or False"),
        ("interaction_drop_path_rate", 1, "interaction_drop_path_rate=1 .*at least 0 and below 1"),
        ("is_dino", 3, "is_dino=3 .*True or False"),
        ("out_interaction_indexes", [0], r"out_interaction_indexes=\[0\] .*set with_simple_fpn=False"),
        ("out_interaction_indexes", "01", "out_interaction_indexes='01' .*list of whole numbers"),
        ("with_simple_fpn", False, "with_simple_fpn=False .*give out_interaction_indexes too"),
        ("with_simple_fnp", True, r"\['with_simple_fnp'\] of PIIPTwoBranch.*leave them out.*mean 'with_simple_fpn'"),
        ("branch2.depth", "2", r"branch2 .*depth='2' .*whole number above 0"),
        ("branch2.num_heads", 5, r"branch2 .*num_heads=5 does not divide embed_dim=32"),
        ("branch2.real_size", 3.5, r"branch2: real_size=3\.5 .*whole number"),
        ("branch2.real_size", 230, r"its branch2 is branch 0 here\): resolutions\[0\]=230 .*nearest"),
        ("branch2.pretrained", 3, r"branch2: pretrained=3 .*string or None"),
        ("branch2.mlp_ratio", -1, r"branch2 .*mlp_ratio=-1"),
        ("branch2.mlp_type", "fused", r"branch2 .*mlp_type='fused' .*Did you mean 'fused_mlp'"),
        ("branch2.Mlp_block", "swiglu", r"branch2 .*Mlp_block='swiglu' .*one of .*'fused_mlp'"),
        ("branch2.norm_layer", "none", r"branch2 .*norm_layer='none' .*give 'LayerNorm'"),
        ("branch2.init_scale", None, r"branch2 .*init_scale=None .*number above 0"),
        ("branch2.drop_path_rate", 1.0, r"branch2 .*drop_path_rate=1\.0 .*below 1"),
        ("branch2.window_attn", [True], r"branch2 .*window_attn=\[True\] .*each of the 2 blocks"),
        ("branch2.window_attn", "yes", r"branch2 .*window_attn='yes'"),
        ("branch2.window_size", [4, 4, 4], r"branch2 .*window_size=\[4, 4, 4\] .*each of the 2 blocks"),
        ("branch2.window_size", 4.5, r"branch2 .*window_size=4\.5"),
        ("branch2.window_size", [-1, 4], r"branch2 .*window_size\[0\]=-1 .*window_attn is True"),
        ("branch2.interaction_indexes", 2, r"branch2: interaction_indexes=2 .*list of \[first, last\]"),
        ("branch2.interaction_indexes", [[0], [1]], r"branch2: interaction_indexes=\[\[0\], \[1\]\]"),
        ("branch2.interaction_indexes", [[0, 1]], r"PIIPTwoBranch \(.*\): interaction_indexes lists \[1, 2\]"),
        ("branch2.interaction_indexes", [[0, 0], [1, 2]], r"interaction_indexes\[0\]=.*must cover blocks 0 to 1"),
        ("branch2.init_sclae", 1, r"\['init_sclae'\] of PIIPTwoBranch.branch2 with .*known configs"),
        ("branch2.num_attention_heads", 2, r"\['num_attention_heads'\] of PIIPTwoBranch.branch2"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_with_their_branch_and_a_remedy(path, value, message):
    with pytest.raises(ConfigError, match=message) as told:
        two_branches([(path, value)])
    assert "PIIPTwoBranch" in str(told.value)


def test_contradictions_are_named():
    with pytest.raises(ConfigError, match=r"'mlp_type': 'mlp', 'Mlp_block': 'fused_mlp'.* contradict each other"):
        two_branches([("branch1.mlp_type", "mlp"), ("branch1.Mlp_block", "fused_mlp")])
    with pytest.raises(ConfigError, match=r"'num_heads': 4, 'num_attention_heads': 2.* contradict each other"):
        two_branches(
            [("branch1", {**branch("b", 160, "perceiver"), "num_heads": 4, "num_attention_heads": 2})],
        )


LAYER_NORMS = ["LayerNorm", "layer_norm", "LN", "nn.LayerNorm", {"type": "LN"}, {"type": "LN", "eps": 1e-6}]


@pytest.mark.parametrize("norm", [*LAYER_NORMS, nn.LayerNorm, partial(nn.LayerNorm, eps=1e-6)])
def test_layer_norm_is_known_in_every_spelling(norm):
    model = two_branches([("norm_layer", norm), ("branch1.norm_layer", norm)])
    assert {type(m) for m in model.modules()} >= {nn.LayerNorm}
    names = [n for n, m in model.interactions.named_modules() if isinstance(m, nn.LayerNorm)]
    without = two_branches([("norm_layer", "none")])
    assert names
    assert not [n for n, m in without.interactions.named_modules() if isinstance(m, nn.LayerNorm)]


@pytest.mark.parametrize("name", ["mlp_type", "Mlp_block"])
def test_mlps_are_known_by_name(name):
    for value, approximate in [("fused_mlp", "tanh"), *((v, "none") for v in (None, "normal", "mlp", "naive_mlp"))]:
        model = two_branches([(f"branch1.{name}", value)])
        assert model.branches[1].blocks[0].mlp.act.approximate == approximate
        assert model.branches[0].blocks[0].mlp.act.approximate == "none"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("RMSNorm", nn.RMSNorm), ("rms_norm", nn.RMSNorm), ("LayerNorm", nn.LayerNorm), ("layer_norm", nn.LayerNorm)],
)
def test_norms_of_the_internvit_kind_are_known_by_name(name, kind):
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "norm_layer_type": name, "init_values": None}
    with on_meta():
        block = build_from_official("InternViT6B", args).branch.blocks[0]
    assert type(block.norm1) is kind
    assert isinstance(block.ls1, nn.Identity)


def test_uniperceiver_starts_with_a_layer_scale_that_learns():
    args = branch("b", 160, "uni-perceiver", init_values=0, embed_dim=64, num_heads=4)
    args |= {"interaction_indexes": [[0, 0], [1, 11]]}
    model = build_from_official("PIIPTwoBranch", {**PIIP_ARGS, "branch1": args, "branch2": {**args, "real_size": 224}})
    assert model.branches[0].blocks[0].ls1.gamma.min() > 0
