"""Fusing models for inference."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from timm.layers import LayerScale
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from piip import model_zoo
from piip.errors import ConfigError
from piip.layers import DeformAttn, WinogradConv2d
from piip.modeling import (
    FPN,
    PIIP,
    BEiTBranch,
    ChannelMapper,
    ConvNeXtBranch,
    LSNet,
    LSNetFPN,
    PIIPClassifier,
    SingleBranch,
    ViTBranch,
    fuse,
)
from piip.modeling.branches import LSNetBranch
from piip.modeling.lsnet.blocks import LSConv
from piip.modeling.meta_arch import SemanticSegmentor
from piip.modeling.sem_seg import UPerNetHead
from piip.modeling.without_weights import on_meta
from tests import reference

TINY = {"dims": (16, 16, 32, 32), "depths": (1, 2, 2, 2)}


def random_norms(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.weight, 1, 0.1)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def test_fused_classifier_matches_reference():
    case = reference.case("lsnet/lsnet_t_cls_224_fused_calm")
    model = timm.create_model("lsnet_t").eval()
    model.load_state_dict(reference.lsnet_weights(case["state_dict"], case["fill_rule"]))
    fused = fuse(model)
    shapes = {name: list(tensor.shape) for name, tensor in fused.state_dict().items()}
    assert shapes == {n: s for n, s in case["fused_state_dict"].items() if not n.endswith("attention_bias_idxs")}
    assert sum(p.numel() for p in fused.parameters()) == case["params_fused"]
    for record in case["fused_tensors"]:
        reference.assert_matches(fused.state_dict()[record["name"]], record)
    records = {record["name"]: record for record in case["outputs"]}
    x = reference.input_of(case)
    with torch.no_grad():
        reference.assert_matches(fused(x), records["logits"], rtol=1e-5)
        reference.assert_matches(model(x), records["logits_unfused"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lsnet_t_distill", 11_755_488),
        ("lsnet_s", 16_098_232),
        ("lsnet_s_distill", 16_547_232),
        ("lsnet_b", 23_249_320),
        ("lsnet_b_distill", 23_762_320),
    ],
)
def test_sizes_are_those_of_the_specification(name, parameters):
    with on_meta():
        model = timm.create_model(name).eval()
    assert sum(p.numel() for p in fuse(model).parameters()) == parameters


def test_whole_pyramids_and_detectors_are_fused_and_the_original_stays():
    torch.manual_seed(0)
    branches = [LSNetBranch(**TINY), ViTBranch(32, 3, 2)]
    groups = [[[0, 2], [3, 5], [6, 11]], [[0, 0], [1, 1], [2, 2]]]
    pyramid = PIIP(branches, [128, 64], groups, {"num_heads": 2}, out_interaction_indexes=[0, 1], out_features=["c6"])
    for model in (pyramid, LSNetFPN(LSNet(**TINY, out_norm=True), out_channels=8, finer_level=True)):
        random_norms(model)
        names, x = list(model.state_dict()), torch.randn(1, 3, 128, 192)
        fused = fuse(model)
        assert list(model.state_dict()) == names
        kept = [m for m in fused.modules() if isinstance(m, _BatchNorm)]
        assert len(kept) == sum(isinstance(m, LSConv) for m in model.modules()) > 0
        with torch.no_grad():
            want, got = model(x), fused(x)
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5)
        assert not any(p.requires_grad for n, p in fused.named_parameters() if n.endswith("patch_embed.0.weight"))


@pytest.mark.parametrize("setting", ["auto", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_come_last_in_batches_on_a_cpu(dtype, setting, monkeypatch):
    monkeypatch.setenv("PIIP_KERNELS", setting)
    torch.manual_seed(0)
    model = random_norms(LSNet(**TINY))
    fused = fuse(model.to(dtype))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 128, 192, dtype=dtype)
        with torch.no_grad():
            want, got = model.float()(x.float()), fused(x)
        for name, expected in want.items():
            assert got[name].dtype == dtype
            error = (got[name] - expected).norm() / expected.norm()
            assert error < {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
        assert got["c3"].is_contiguous(memory_format=torch.channels_last) == (batch > 1)


def test_a_detector_of_the_zoo_is_fused():
    cfg = model_zoo.get_config("COCO-Detection/retinanet_lsnet_t_1x")
    model = instantiate(cfg.model).eval()
    image = [{"image": torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)}]
    with torch.no_grad():
        want, got = (m(image)[0]["instances"] for m in (model, fuse(model)))
    torch.testing.assert_close(got.scores, want.scores, rtol=1e-3, atol=1e-4)


def random_vectors(module: nn.Module) -> nn.Module:
    """Scales, gates, norms and biases, which start with zeros and ones; and what decides where interactions look."""
    for name, parameter in random_norms(module).named_parameters():
        if parameter.dim() < 2:
            nn.init.normal_(parameter, 0.3, 0.5)
        elif "sampling" in name or "attention_weights" in name:
            nn.init.normal_(parameter, 0, 0.3)
    return module


def pyramid(**kwargs) -> PIIP:
    branches = [ViTBranch(w, 2, 2, window_size=3, pretrain_img_size=64) for w in (32, 64)]
    return PIIP(branches, [128, 64], 2, {"num_heads": 4, **kwargs.pop("interaction", {})}, **kwargs)


def single(branch: nn.Module) -> FPN:
    return FPN(SingleBranch(branch), ["c2", "c3", "c4", "c5"], 32, norm="GN", top_block=LastLevelMaxPool())


ALL = ["c2", "c3", "c4", "c5"]
# Built when the test runs; and which of the maps have become as narrow as what is above them.
MODELS = {
    "fpn": (lambda: FPN(pyramid(), ALL, 32, top_block=LastLevelP6P7(64, 32, "c5")), ["c2", "c3"]),
    "fpn whose top block looks at the backbone": (
        lambda: FPN(pyramid(), ["c2", "c3"], 32, top_block=LastLevelP6P7(64, 32, "c3")),
        ["c2"],
    ),
    "channel mapper": (lambda: ChannelMapper(pyramid(), ["c3", "c4", "c5"], 32), ["c3"]),
    "channel mapper with levels from the last map": (lambda: ChannelMapper(pyramid(), ["c2", "c3"], 32, 3), ["c2"]),
    "vit": (lambda: single(ViTBranch(64, 2, 2, window_size=3, pretrain_img_size=64)), ["c2", "c3"]),
    "beit": (lambda: single(BEiTBranch(64, 2, 2, window_size=3)), ["c2", "c3"]),
    "upernet": (
        lambda: SemanticSegmentor(
            backbone=(body := pyramid()),
            sem_seg_head=UPerNetHead(body.output_shape(), num_classes=3, channels=32, norm="GN"),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        ),
        ["c2", "c3"],
    ),
    "convnext": (
        lambda: PIIP(
            [ConvNeXtBranch([1] * 4, [32, 32, 64, 64]) for _ in range(2)],
            [64, 32],
            [[[0, 0], [1, 2], [3, 4], [5, 6]]] * 2,
            {"num_heads": 2, "attention": "dense"},
            out_interaction_indexes=[0, 1, 2],
        ),
        [],
    ),
    "classifier": (
        lambda: PIIPClassifier(
            [ViTBranch(w, 2, 2, pretrain_img_size=32) for w in (32, 64)],
            [64, 32],
            num_classes=5,
            head="merged",
            interaction_indexes=2,
            interaction={"num_heads": 4, "ffn_ratio": 0.0},
        ),
        [],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_scales_and_lateral_convolutions_are_folded(name):
    torch.manual_seed(0)
    build, narrow = MODELS[name]
    model = random_vectors(build())
    # Deformable attention has float32 places; what has none is compared in float64.
    exact = not any(isinstance(m, DeformAttn) for m in model.modules())
    dtype, tolerance = (torch.float64, 1e-10) if exact else (torch.float32, 1e-4)
    fused, x = fuse(model.to(dtype)), torch.randn(2, 3, 64, 128, dtype=dtype)
    args = ([{"image": image} for image in x],) if isinstance(model, SemanticSegmentor) else (x,)
    with torch.no_grad(), FlopCounterMode(display=False) as before:
        want = model(*args)
    with torch.no_grad(), FlopCounterMode(display=False) as after:
        got = fused(*args)
    for y, z in zip(leaves(got), leaves(want), strict=True):
        assert (y - z).norm() < tolerance * z.norm()
    assert (after.get_total_flops() < before.get_total_flops()) == bool(narrow)
    assert not any(isinstance(m, LayerScale) for m in fused.modules())
    assert not any("gamma" in n for n, _ in fused.named_parameters())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any(m.training for m in fused.modules())
    if narrow:
        body = fused.backbone if isinstance(model, SemanticSegmentor) else fused.bottom_up
        assert [n for n, shape in body.output_shape().items() if shape.channels == 32] == narrow
        with torch.no_grad():
            assert [n for n, y in body(x).items() if y.shape[1] == 32] == narrow
    with pytest.raises(ConfigError, match="no parts left to fuse"):
        fuse(fused)


@pytest.mark.parametrize(("dtype", "joined"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_queries_of_deformable_attention_go_through_one_product(dtype, joined):
    model = random_vectors(pyramid()).to(dtype)
    fused, state = fuse(model), model.state_dict()
    names = [name for name, module in fused.named_modules() if isinstance(module, DeformAttn)]
    assert len(names) == 4
    for name in names:
        for kind in ("weight", "bias"):
            parts = [state[f"{name}.{part}.{kind}"] for part in ("sampling_offsets", "attention_weights")]
            whole = fused.state_dict()[f"{name}.joined.{kind}"]
            assert whole.dtype == joined
            assert torch.equal(whole, torch.cat(parts))
    assert not any("sampling_offsets" in name for name in fused.state_dict())


def leaves(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [x for part in (outputs.values() if isinstance(outputs, dict) else outputs) for x in leaves(part)]


def test_a_block_of_timm_and_half_precision():
    torch.manual_seed(0)
    block = random_vectors(Block(32, 2, init_values=1.0))
    x = torch.randn(1, 9, 32)
    with torch.no_grad():
        torch.testing.assert_close(fuse(block)(x), block(x), rtol=1e-5, atol=1e-5)
    model = random_vectors(FPN(pyramid(), ALL, 32)).to(torch.bfloat16)
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)
        want, got = model(x)["p2"], fuse(model)(x)["p2"]
    assert got.dtype == torch.bfloat16
    assert (got - want).norm() < 0.03 * want.norm()


def test_what_cannot_be_fused_is_told():
    model = LSNet(**TINY)
    with pytest.raises(ConfigError, match="LSNet in training mode cannot be fused; call its eval"):
        fuse(model)
    with pytest.raises(ConfigError, match="Linear has no parts left to fuse"):
        fuse(nn.Linear(2, 2).eval())
    fused = fuse(model.eval())
    with pytest.raises(ConfigError, match="no parts left to fuse"):
        fuse(fused)
    assert fused.train().training


def test_wide_convolutions_are_fast_ones_on_a_cpu():
    torch.manual_seed(0)
    model = random_norms(instantiate(model_zoo.get_config("mask_rcnn_lsnet_t_1x").model))
    parts = fast_parts(fuse(model))
    assert parts["backbone"] == [f"output_convs.p{level}" for level in range(2, 7)]
    assert len(parts["proposal_generator"]) == 1
    assert len(parts["roi_heads"]) == 4  # of masks
    fpn = random_vectors(FPN(pyramid(), ALL, 256, norm="GN"))  # Detectron2's has its layers in lists
    fused = fuse(fpn)
    assert sorted(fast_parts(fused)) == [f"fpn_output{level}" for level in (2, 3, 4, 5)]
    ran = set()
    for name, module in fused.named_modules():
        if isinstance(module, WinogradConv2d):
            module.register_forward_hook(lambda *args, name=name: ran.add(name))
    x = torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        want, got = fpn(x), fused(x)
    for name in want:
        assert (got[name] - want[name]).norm() < 1e-5 * want[name].norm()
    assert len(ran) == 4


def fast_parts(model: nn.Module) -> dict[str, list[str]]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, WinogradConv2d):
            part, _, rest = name.partition(".")
            found.setdefault(part, []).append(rest)
    return found


def test_copies_of_a_compiled_branch_run_their_own_weights():
    branch = ViTBranch(32, 1, 2).eval()
    branch.compile(backend="eager")
    assert copy.deepcopy(branch)._compiled_call_impl is None
