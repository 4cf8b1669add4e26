"""Released LSNet checkpoints: classifiers, dense backbones, detectors, segmentors, and branches of PIIP."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from piip import model_zoo
from piip.checkpoint import load_official, load_pretrained, load_weights, to_official
from piip.checkpoint.describe import describe
from piip.errors import CheckpointError
from piip.modeling import PIIP, LSNet, LSNetClassifier, LSNetFPN, SingleBranch, ViTBranch, fuse
from piip.modeling.branches import LSNetBranch
from piip.modeling.lsnet import VARIANTS
from tests import reference

TINY = {"dims": (16, 16, 24, 32), "depths": (0, 2, 2, 2)}
CONFIGS = {
    "RetinaNet": "COCO-Detection/retinanet_lsnet_t_1x",
    "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_lsnet_t_1x",
    "Semantic FPN": "ADE20K-SemanticSegmentation/semantic_fpn_lsnet_t_40k",
}


def classifier(**options) -> LSNetClassifier:
    return LSNetClassifier(**TINY, **{"num_classes": 6, **options})


def whole(kind: str) -> nn.Module:
    cfg = model_zoo.get_config(CONFIGS[kind])
    cfg.model.backbone.bottom_up.update(dims=list(TINY["dims"]), depths=list(TINY["depths"]))
    if kind == "Mask R-CNN":
        cfg.model.roi_heads.box_head.fc_dims = [16, 16]
        cfg.model.roi_heads.box_predictor.input_shape.channels = 16
    return instantiate(cfg.model).eval()


def released(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the released layout of a model."""
    torch.manual_seed(seed)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in to_official(model).items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Classifiers


@pytest.mark.parametrize("distillation", [False, True])
def test_a_classifier_is_loaded_and_written_by_the_released_names(distillation, tmp_path):
    model = classifier(distillation=distillation)
    tensors = released(model)
    assert tensors["blocks4.3.mixer.m.attention_bias_idxs"].shape == (16, 16)
    assert {"head_dist.bn.weight", "head_dist.l.bias"} <= tensors.keys() or not distillation
    for container in (tensors, {"model": tensors}, {"state_dict": {f"module.{k}": v for k, v in tensors.items()}}):
        other = classifier(distillation=distillation)
        report = load_official(other, container)
        assert report.complete
        assert report.ignored == ["blocks4.3.mixer.m.attention_bias_idxs"]
        assert same(to_official(other), tensors)
    torch.save({"model": tensors}, tmp_path / "a.pth")
    assert load_weights(classifier(distillation=distillation), tmp_path / "a.pth").complete


def test_names_and_shapes_are_those_of_the_released_files():
    for name, case in (
        ("lsnet_t", "lsnet_t_cls_224_calm"),
        ("lsnet_s", "lsnet_s_cls_stages_224_calm"),
    ):
        with torch.device("meta"):
            tensors = to_official(timm.create_model(name))
        assert {k: list(v.shape) for k, v in tensors.items()} == reference.case(f"lsnet/{case}")["state_dict"]


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_the_other_kind_of_classifier_is_refused(distillation, strict):
    model, other = classifier(distillation=distillation), classifier(distillation=not distillation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"in a classifier.*with a distillation head.*lsnet_\*_distill"):
        load_official(model, to_official(other), strict=strict)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(("one", "other"), [("t", "s"), ("b", "t")])
def test_another_size_is_refused_with_what_it_looks_like(one, other):
    with torch.device("meta"):
        tensors, model = to_official(timm.create_model(f"lsnet_{one}")), LSNet(**VARIANTS[other])
    with pytest.raises(CheckpointError, match=rf"\(LSNet-{one.upper()}\) in a classifier.*\(LSNet-{other.upper()}\)"):
        load_official(model, tensors, strict=False)


def test_heads_for_other_classes_stay_as_they_are(tmp_path):
    torch.save(released(classifier()), tmp_path / "a.pth")
    model = classifier(num_classes=9)
    report = load_weights(model, tmp_path / "a.pth")
    assert [name.split(":")[0] for name in report.mismatched] == ["head.l.weight", "head.l.bias"]
    assert not report.missing


def test_an_image_classifier_takes_the_network_it_is_around(tmp_path):
    cfg = model_zoo.get_config("ImageNet-Classification/lsnet_t_300ep")
    model = instantiate(cfg.model)
    tensors = released(model)
    torch.save(tensors, tmp_path / "a.pth")
    assert load_weights(model, tmp_path / "a.pth").complete
    assert same(to_official(model.network), tensors)


# Dense tasks


def test_a_classifier_in_a_dense_backbone_matches_reference():
    case = reference.case("lsnet/lsnet_t_cls_to_det_224x320_calm")
    weights = reference.lsnet_weights(case["state_dict"], case["fill_rule"])
    model = LSNet(**VARIANTS["t"]).eval()
    report = load_official(model, weights)
    assert [name.rpartition(".")[2] for name in report.resized] == ["attention_biases"] * 5
    assert {name.split(".")[0] for name in report.ignored} == {"head"}
    with torch.no_grad():
        outs = model(reference.input_of(case))
    for out, record in zip(outs.values(), case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)


FORMS = [("maskrcnn", {"finer_level": True}), ("retinanet", {"coarser_level": True})]


@pytest.mark.parametrize(("name", "options"), FORMS)
def test_backbone_and_neck_have_the_released_names(name, options):
    with torch.device("meta"):
        tensors = to_official(LSNetFPN(LSNet(**VARIANTS["t"]), **options))
    case = reference.case(f"lsnet/lsnet_t_det_{name}_fpn_224x320_calm")
    assert {k: list(v.shape) for k, v in tensors.items()} == case["state_dict"]


@pytest.mark.parametrize("options", [options for _, options in FORMS])
def test_backbone_and_neck_are_taken_out_of_a_detector(options):
    model = LSNetFPN(LSNet(**TINY), out_channels=8, **options)
    tensors = released(model)
    heads = {"rpn_head.rpn_conv.weight": torch.zeros(1), "bbox_head.retina_cls.bias": torch.zeros(1)}
    report = load_official(model, {"meta": {"epoch": 12}, "state_dict": {**tensors, **heads}})
    assert report.complete
    assert set(heads) < set(report.ignored)
    assert same(to_official(model), tensors)
    alone = LSNet(**TINY)
    assert load_official(alone, tensors).complete
    assert same(alone.state_dict(), model.bottom_up.state_dict())


@pytest.mark.parametrize("kind", CONFIGS)
def test_whole_models_survive_the_way_to_the_released_layout_and_back(kind, tmp_path):
    model = whole(kind)
    tensors = released(model)
    parts = {"RetinaNet": {"bbox_head"}, "Mask R-CNN": {"rpn_head", "roi_head"}, "Semantic FPN": {"decode_head"}}
    assert {name.split(".")[0] for name in tensors} == {"backbone", "neck", *parts[kind]}
    trained = [name for name, _ in model.named_parameters()]
    assert len(trained) == sum(t.is_floating_point() and "running_" not in n for n, t in tensors.items())
    assert describe(tensors) == f"a single network of width 32 and depth 6 (LSNet) in a {kind}"
    torch.save({"meta": {}, "state_dict": tensors, "optimizer": {}}, tmp_path / "a.pth")
    report = load_weights(model, tmp_path / "a.pth")
    assert report.missing == report.mismatched == report.unexpected == []
    assert same(to_official(model), tensors)
    assert describe(model.state_dict()).endswith(f"in a {kind}")
    # Our own names are no released ones, and nothing is reordered then.
    torch.save({"model": model.state_dict()}, tmp_path / "b.pth")
    other = whole(kind)
    assert load_weights(other, tmp_path / "b.pth").complete
    assert same(other.state_dict(), model.state_dict())


def test_released_names_of_the_heads():
    names = {
        "RetinaNet": [
            "bbox_head.cls_convs.3.conv.weight",
            "bbox_head.reg_convs.0.conv.bias",
            "bbox_head.retina_reg.bias",
        ],
        "Mask R-CNN": [
            "rpn_head.rpn_reg.weight",
            "roi_head.bbox_head.shared_fcs.1.weight",
            "neck.fpn_convs.3.conv.bias",
        ],
        "Semantic FPN": ["decode_head.scale_heads.3.4.bn.running_var", "decode_head.scale_heads.0.0.conv.weight"],
    }
    for kind, wanted in names.items():
        tensors = to_official(whole(kind))
        assert set(wanted) <= tensors.keys()
    shapes = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("decode_head.")}
    assert shapes["decode_head.scale_heads.2.2.conv.weight"] == (128, 128, 3, 3)
    assert shapes["decode_head.conv_seg.weight"] == (150, 128, 1, 1)
    assert len([n for n in shapes if n.endswith("conv.weight")]) == 7


def test_outputs_of_a_retinanet_follow_the_order_of_the_anchors():
    model = whole("RetinaNet")
    tensors = released(model)
    # In the released order: 9 anchors, the 3 sizes of the first aspect ratio first.
    scores = torch.arange(9.0).repeat_interleave(80) + torch.arange(80.0).repeat(9) / 100
    tensors["bbox_head.retina_cls.bias"] = scores
    load_official(model, tensors)
    got = model.head.cls_score.bias.detach().unflatten(0, (9, 80))
    anchors = next(iter(model.anchor_generator.cell_anchors))
    sides = anchors[:, 2:] - anchors[:, :2]
    ratio_of, size_of = sides[:, 1] / sides[:, 0], sides.prod(1).sqrt()
    for k in range(9):
        released_index = int(got[k, 0])
        assert ratio_of[k].item() == pytest.approx([0.5, 1.0, 2.0][released_index // 3], rel=1e-4)
        assert size_of[k].item() == pytest.approx(32 * 2 ** (released_index % 3 / 3), rel=1e-4)
    torch.testing.assert_close(got - got[:, :1], torch.arange(80.0).expand(9, 80) / 100, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_starts_from_a_classifier(kind, tmp_path):
    torch.save({"model": released(classifier(distillation=True))}, tmp_path / "a.pth")
    model = whole(kind)
    report = load_weights(model, tmp_path / "a.pth")
    assert not any(".bottom_up." in name for name in (*report.missing, *report.mismatched))
    assert {name.split(".")[1] for name in report.ignored} >= {"head", "head_dist"}


def test_stages_that_were_not_built_are_left_out():
    model = LSNet(**TINY, out_features=["c4"], out_norm=True)
    report = load_official(model, released(classifier()))
    assert report.complete
    assert {name.split(".")[0] for name in report.ignored} == {"blocks3", "blocks4", "head"}


def test_branches_of_depthwise_convolutions_may_be_absent(caplog):
    source = classifier(num_classes=4)
    nn.init.normal_(source.blocks4[2].mixer.conv.bn.weight)
    tensors = {name: tensor for name, tensor in to_official(source).items() if ".mixer.conv1." not in name}
    model = classifier(num_classes=4).eval()
    with caplog.at_level(logging.WARNING):
        report = load_official(model, tensors)
    assert report.complete
    assert len(report.absent) == 3 * 6
    assert "1x1 branches of 3 depthwise convolutions" in caplog.text
    x = torch.randn(1, 16, 5, 5)
    mixer = model.blocks2[2].mixer
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), mixer.conv(x) + x)
        image = torch.randn(1, 3, 128, 128)
        torch.testing.assert_close(fuse(model)(image), model(image))
    with pytest.raises(CheckpointError, match=r"missing: blocks2\.2\.ffn\.m\.pw1\.c\.weight"):
        load_official(model, {k: v for k, v in tensors.items() if k != "blocks2.2.ffn.m.pw1.c.weight"})


# Branches of PIIP


def pyramid(weights=None) -> PIIP:
    groups = [[[0, 4], [5, 10]], [[0, 0], [1, 1]]]
    return PIIP(
        [LSNetBranch(**TINY, weights=weights), ViTBranch(32, 2, 2)],
        [128, 64],
        groups,
        {"num_heads": 2},
        out_interaction_indexes=[0],
        out_features=["c6"],
    )


@pytest.mark.parametrize("whole_detector", [False, True])
def test_a_branch_is_pretrained_by_any_released_file(whole_detector, tmp_path):
    source = released(whole("RetinaNet") if whole_detector else classifier(distillation=True))
    torch.save({"state_dict": source}, tmp_path / "a.pth")
    model = pyramid(str(tmp_path / "a.pth"))
    report = load_pretrained(model)
    own = model.branches[0].state_dict()
    assert len(report.loaded) + len(report.resized) == len(own)
    assert len(report.resized) == (0 if whole_detector else 1)
    prefix = "backbone." if whole_detector else ""
    assert all(torch.equal(own[n], source[prefix + n]) for n in own if not n.endswith("attention_biases"))


def test_a_single_network_goes_to_the_branch_of_its_kind(tmp_path):
    source = released(classifier())
    torch.save({"model": source}, tmp_path / "a.pth")
    model = pyramid()
    report = load_weights(model, tmp_path / "a.pth")
    assert all(name.startswith("branches.0.") for name in report.loaded)
    assert torch.equal(model.branches[0].patch_embed[0].c.weight, source["patch_embed.0.c.weight"])
    torch.save(to_official(timm.create_model("lsnet_t")), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"width 384 and depth 20 \(LSNet-T\), which fits 0 branches"):
        load_weights(model, tmp_path / "b.pth")
    branch = LSNetBranch(**TINY, weights=str(tmp_path / "b.pth"))
    with pytest.raises(CheckpointError, match=r"pretrained weights.*looks like.*\(LSNet-T\)"):
        load_pretrained(branch)


def test_trained_pyramids_and_single_branches_are_loaded_again(tmp_path):
    for model in (pyramid(), SingleBranch(LSNetBranch(**TINY), ["c3"])):
        torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
        assert load_weights(model, tmp_path / "a.pth").complete
    other = SingleBranch(LSNetBranch(**VARIANTS["t"]), ["c3"])
    with pytest.raises(CheckpointError, match=r"of width 32 and depth 6 \(LSNet\), the model is .* \(LSNet-T\)"):
        load_weights(other, tmp_path / "a.pth")
