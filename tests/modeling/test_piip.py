"""The PIIP backbone against the reference numbers, and its behaviour as a Detectron2 backbone."""

import copy
import math

import pytest
import torch
from detectron2.modeling.backbone.fpn import FPN as Detectron2FPN

from piip import model_zoo
from piip.checkpoint import build_from_official, load_official
from piip.errors import ConfigError
from piip.modeling import FPN, PIIP, SingleBranch, ViTBranch, image_pyramid
from piip.modeling.branch_pyramid import block_groups
from piip.modeling.branches.convnext import ConvNeXtBranch
from piip.modeling.without_weights import build_without_weights, without_weights
from tests import reference

CASES = [
    "tiny_3branch",
    "tiny_3branch_crossattn",
    "tiny_3branch_dino",
    "tiny_3branch_nonsquare",
    "tiny_3branch_noproj_nonorm",
    "tiny_3branch_plain_window",
    "twobranch_deit",
    "twobranch_deit_dino_crossattn",
    "tsb_1120_896_448_in320x320",
    pytest.param("tsb_1120_896_448_in224x352_b2", marks=pytest.mark.slow),  # as the one before, two images
    "beit_sbl_reduced",
    "baseline_deit_vit_b",
    "baseline_convnext_b",
    "convnext_tsb_1024_672_448_in256x384",
    pytest.param("convnext_tsb_1024_672_448_in320x224_b2", marks=pytest.mark.slow),  # as the one before, two images
]


# These are built from the packaged config instead of the released arguments.
CONFIGS = {
    "tsb_1120_896_448_in320x320": "COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py",
    "baseline_deit_vit_b": "COCO-InstanceSegmentation/mask_rcnn_vit_b_1024_1x.py",
}


def load(case):
    if config := CONFIGS.get(case["name"]):
        model = build_without_weights(model_zoo.get_config(config).model.backbone.bottom_up)
    else:
        with without_weights():
            model = build_from_official(case["class"], case["args"])
    report = load_official(model, reference.weights(case["state_dict"]))
    assert report.complete
    return model.eval()


def tiny(count=3, **kwargs):
    """A pyramid of ``count`` tiny branches."""
    widths, resolutions = [32, 64, 96, 128][:count], [224, 160, 96, 64][:count]
    branches = [ViTBranch(w, 2, 2, window_size=4, pretrain_img_size=64) for w in widths]
    kwargs = {"interaction_indexes": 2, "interaction": {"num_heads": 4}, **kwargs}
    return PIIP(branches, resolutions, **kwargs)


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name):
    case = reference.case(f"piip/{name}")
    model = load(case)
    with torch.no_grad():
        outputs = model(reference.input_of(case))
    assert len(outputs) == len(case["outputs"])
    for got, record in zip(outputs.values(), case["outputs"], strict=True):
        reference.assert_matches(got, record, rtol=1e-5)
    # The released three-branch DINO class carries a finest level that it never uses, ConvNeXt a final norm.
    unused = ("fpn1.",) if len(outputs) == 3 else ("convnext_model.layernorm.",)
    rest = sum(math.prod(s) for k, s, _ in case["state_dict"] if any(part in k for part in unused))
    assert sum(p.numel() for p in model.parameters()) + rest == case["param_count"]


def test_intermediate_tensors_match_reference():
    case, full = reference.case("piip/tiny_3branch"), reference.arrays("piip/tiny_3branch_full")
    model, seen = load(case), {}
    for k, branch in enumerate(model.branches):
        embed = branch.embed

        def spy(image, k=k, embed=embed):
            state = embed(image)
            seen[f"tokens_x{3 - k}"] = state.tokens
            return state

        branch.embed = spy
    model.merge.register_forward_hook(lambda module, args, out: seen.update(merged=out))
    for step in (0, 2):
        for pair, unit in enumerate(model.interactions[step]):
            # The finest pair runs first, so the last unit that touches a branch has the final word.
            unit.register_forward_hook(
                lambda module, args, out, step=step, pair=pair: seen.update(
                    {f"interactions_{step}_x{3 - pair}": out[0], f"interactions_{step}_x{2 - pair}": out[1]}
                )
            )
    with torch.no_grad():
        outputs = model(reference.input_of(case))
    seen.update(f2=outputs["c3"], f4=outputs["c5"])
    assert set(seen) >= set(full)
    for name, want in full.items():
        torch.testing.assert_close(seen[name], want, rtol=1e-5, atol=2e-5)


def test_gradients_match_reference():
    case = reference.case("piip/tiny_3branch_grad")
    model, image = load(case), reference.input_of(case).requires_grad_()
    maps = model(image).values()
    loss = sum((f * reference.normal(1000 + i, list(f.shape))).mean() for i, f in enumerate(maps))
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    from piip.checkpoint.official import official_names

    ours = {theirs: name for name, theirs in official_names(model).items()}
    for record in case["grads"]:
        grad = image.grad if record["name"] == "input" else model.get_parameter(ours[record["name"]]).grad
        reference.assert_matches(grad, record, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_branches_and_any_input_shape(count):
    model = tiny(count).eval()
    shapes = model.output_shape()
    for size in ((64, 64), (48, 96), (112, 64)):
        if count == 4 and min(size) < 64:
            continue  # the coarsest branch would see less than one patch
        with torch.no_grad():
            out = model(torch.randn(2, 3, *size))
        assert list(out) == ["c2", "c3", "c4", "c5"]
        for name, x in out.items():
            assert x.shape == (2, shapes[name].channels, *(s // shapes[name].stride for s in size))


def test_every_parameter_learns_once_the_gates_are_open():
    torch.manual_seed(0)
    model = tiny()
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.constant_(parameter, 0.5)
        elif name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(parameter, std=0.02)  # start at zero, too
    sum(x.square().mean() for x in model(torch.randn(1, 3, 64, 96)).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_activation_checkpointing_changes_nothing():
    torch.manual_seed(0)
    plain = tiny(interaction={"num_heads": 4, "drop_path_rate": 0.5}).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    image, grads = torch.randn(2, 3, 64, 64), []
    for model in (plain, saving):
        torch.manual_seed(1)
        model(image)["c4"].square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_stochastic_depth_acts_in_training_only():
    branch = ViTBranch(32, 4, 2, drop_path_rate=0.9)
    image = torch.randn(8, 3, 32, 32)
    run = lambda: branch.run(branch.embed(image), 0, 4).tokens  # noqa: E731
    torch.manual_seed(0)
    first = run()
    assert not torch.equal(first, run())
    branch.eval()
    assert torch.equal(run(), run())


@pytest.mark.parametrize("fpn_class", [FPN, Detectron2FPN])
def test_works_under_an_fpn(fpn_class):
    fpn = fpn_class(tiny(size_divisibility=224), ["c2", "c3", "c4", "c5"], 32)
    assert fpn.size_divisibility == (224 if fpn_class is FPN else 32)
    out = fpn(torch.randn(1, 3, 64, 96))
    assert {k: tuple(v.shape[2:]) for k, v in out.items()} == {
        "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3),
    }  # fmt: skip


def test_replaced_branch_fits_in():
    model = tiny().double()
    model.replace_branch(0, ViTBranch(48, 2, 3))
    out = model(torch.randn(1, 3, 64, 64, dtype=torch.float64))["c4"]
    assert out.shape == (1, 96, 4, 4)
    assert out.dtype == torch.float64
    with pytest.raises(ConfigError, match="one with 3"):
        model.replace_branch(0, ViTBranch(48, 3, 3))


def test_pairs_say_who_interacts():
    image = torch.randn(1, 3, 64, 96)
    default, explicit = tiny(), tiny(interaction_pairs=[[0, 1], [1, 2]])
    explicit.load_state_dict(default.state_dict())
    other = tiny(interaction_pairs=[[0, 2]])
    assert len(other.interactions[0]) == 1
    with torch.no_grad():
        for model in (default, explicit, other):
            for name, parameter in model.named_parameters():
                if "gamma" in name:
                    parameter.fill_(0.5)
        expected, got = default(image), explicit(image)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        seen = set()
        for k in (0, 2):
            before = other(image)["c4"]
            other.branches[k].blocks[0].mlp.fc2.bias.add_(1)
            seen.add(torch.equal(other(image)["c4"], before))
    assert seen == {False}


def test_stages_are_merged_one_by_one():
    """A ViT that leads branches with stages: all maps start from its one grid."""
    branches = [ViTBranch(32, 4, 2, pretrain_img_size=64), ConvNeXtBranch((1, 1, 1, 1), (32, 32, 64, 96))]
    groups = [[[k, k] for k in range(4)], [[0, 0], [1, 2], [3, 4], [5, 6]]]
    model = PIIP(branches, [128, 96], groups, {"num_heads": 4}, out_interaction_indexes=[0, 1, 2])
    maps = model(torch.randn(2, 3, 128, 160))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "c2": (2, 32, 32, 40), "c3": (2, 32, 16, 20), "c4": (2, 64, 8, 10), "c5": (2, 96, 4, 5),
    }  # fmt: skip
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == {
        "c2": (32, 4), "c3": (32, 8), "c4": (64, 16), "c5": (96, 32),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"ConvNeXtBranch, has stages with strides \[4, 8, 16, 32\].*out_interaction"):
        PIIP(branches[::-1], [128, 96], 4, {"num_heads": 4})


def test_a_half_precision_backbone_fits_between_float32_image_and_heads():
    model, image = tiny().eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        got = model.bfloat16()(image)
    for name, x in got.items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected[name], rtol=0.1, atol=0.05)


def test_block_groups_put_larger_groups_last():
    assert block_groups(24, 12) == [[2 * i, 2 * i + 1] for i in range(12)]
    assert block_groups(32, 12)[:5] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 10]]
    assert block_groups(32, 12)[-1] == [29, 31]


def test_pyramid_rounds_sizes_down_and_keeps_the_nominal_factor():
    image = torch.randn(1, 3, 672, 672)
    sizes = [tuple(x.shape[2:]) for x in image_pyramid(image, [1120, 896, 448])]
    assert sizes == [(672, 672), (537, 537), (268, 268)]
    ramp = torch.arange(672.0).expand(1, 3, 672, 672)
    small = image_pyramid(ramp, [1120, 896])[1]
    assert small[0, 0, 0, 100].item() == pytest.approx(100.5 / 0.8 - 0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"resolutions": [224, 160]}, "one resolution per branch"),
        ({"resolutions": [224, 150, 96]}, r"resolutions\[1\]=150 is not divisible by the 16-pixel.*144"),
        ({"resolutions": [96, 160, 224]}, "must fall"),
        ({"interaction_indexes": 3}, "between 1 and 2"),
        ({"interaction_indexes": [[[0, 0], [1, 1]], [[0, 1]], [[0, 0], [1, 1]]]}, r"lists \[2, 1, 2\] block ranges"),
        (
            {"interaction_indexes": [[[0, 0], [1, 1]]] * 2 + [[[0, 0], [0, 1]]]},
            r"interaction_indexes\[2\].*blocks 0 to 1",
        ),
        ({"interaction_indexes": [[[0, 1], [2, 1]]] * 3}, "empty ranges"),
        ({"out_features": ["c1"]}, "c1"),
        ({"interaction_indexes": [[0, 1], [0, 1], [0, 1]]}, "one list of"),
        ({"interaction_indexes": [[[0], [1]]] * 3}, "one list of"),
        ({"interaction": {"num_head": 4}}, r"interaction.num_head is unknown.*Did you mean 'num_heads'"),
        ({"interaction": {"num_heads": 0}}, "num_heads=0"),
        ({"interaction": {"num_heads": 4, "num_points": 0}}, "num_points=0"),
        ({"interaction": {"num_heads": 4, "drop_path_rate": 2}}, "drop_path_rate=2"),
        ({"interaction": {"num_heads": 4, "ffn_ratio": 0.001}}, "ffn_ratio=0.001"),
        ({"interaction": {"num_heads": 5}}, "between branches 0 and 1 at interaction step 0.*num_heads=5"),
        ({"interaction_pairs": [[1, 0]]}, r"\[1, 0\] must be two different branches, the finer one first.*0 to 2"),
        ({"interaction_pairs": [0, 1]}, "list of .finer, coarser. pairs"),
        ({"interaction_pairs": [[0, 3]]}, r"\[0, 3\] must be"),
        ({"interaction_pairs": [[0, 1], [0, 1]]}, "occur once"),
        ({"out_interaction_indexes": [1]}, r"out_interaction_indexes=\[1\].*from 0 to 0"),
        ({"out_interaction_indexes": []}, r"must be some of \['c4'\]"),
        ({"out_interaction_indexes": [0], "out_features": ["c4"]}, r"strides \[16, 16\], which must rise"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    branches = [ViTBranch(w, 2, 2) for w in (32, 64, 96)]
    kwargs = {"resolutions": [224, 160, 96], "interaction_indexes": 2, "interaction": {"num_heads": 4}, **kwargs}
    with pytest.raises(ConfigError, match=message):
        PIIP(branches, **kwargs)


def test_patches_that_no_pyramid_fits_are_named():
    with pytest.raises(ConfigError, match="stride 14"):
        PIIP([ViTBranch(32, 1, 2, patch_size=14, pretrain_img_size=224)], [224], 1)


def test_a_width_that_cannot_be_normalised_is_named():
    with pytest.raises(ConfigError, match=r"width 112.*multiple of 32"):
        PIIP([ViTBranch(112, 1, 2)], [224], 1)


def test_inputs_that_patches_do_not_tile_are_refused():
    for model in (tiny(), SingleBranch(ViTBranch(32, 1, 2))):
        with pytest.raises(ConfigError, match=r"\(1, 3, 72, 64\).*multiples of 16"):
            model(torch.randn(1, 3, 72, 64))
    with pytest.raises(ConfigError, match="smaller than one patch"):
        tiny(4)(torch.randn(1, 3, 48, 48))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_act_checkpoint", [False, True])
def test_gpu_agrees_with_cpu_and_learns(dtype, use_act_checkpoint):
    torch.manual_seed(0)
    cpu = tiny().train()
    for name, parameter in cpu.named_parameters():
        if "gamma" in name:
            torch.nn.init.constant_(parameter, 0.5)
    gpu = copy.deepcopy(cpu).cuda()
    gpu.set_grad_checkpointing(use_act_checkpoint)
    image = torch.randn(2, 3, 96, 128)
    expected = cpu(image)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
        maps = gpu(image.cuda())
        loss = sum(x.float().square().mean() for x in maps.values())
    loss.backward()
    for name, want in expected.items():
        error = (maps[name].float().cpu() - want).norm() / want.norm()
        assert error < (1e-3 if dtype is None else 5e-2), name
    assert all(p.grad.isfinite().all() for p in gpu.parameters() if p.grad is not None)
