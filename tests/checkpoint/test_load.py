"""Loading released and own checkpoints: reports, resizing, adaptation, refusals."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from piip import model_zoo
from piip.checkpoint import build_from_official, load_official, load_pretrained, load_weights
from piip.checkpoint.official import official_names
from piip.errors import CheckpointError, ConfigError
from piip.modeling import PIIP, SingleBranch, ViTBranch
from tests import reference


def tiny(widths=(32, 64, 96), depth=2):
    branches = [ViTBranch(w, depth, w // 16, pretrain_img_size=64) for w in widths]
    return PIIP(branches, [224, 160, 96, 64][: len(widths)], 2, {"num_heads": 4})


def released(model, prefix=""):
    """A released-style state dict with the weights of a model."""
    state = model.state_dict()
    return {prefix + theirs: state[ours].clone() for ours, theirs in official_names(model).items()}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("container", ["bare", "state_dict", "module", "model", "data-parallel", "bf16"])
def test_containers_of_released_checkpoints(container):
    source, target = tiny(), tiny()
    if container == "bf16":
        source.bfloat16().float()
        for parameter in source.parameters():
            parameter.data = parameter.data.bfloat16().float()
    state = released(source)
    if container == "data-parallel":
        state = {f"module.{k}": v for k, v in state.items()}
    elif container == "bf16":
        state = {k: v.bfloat16() for k, v in state.items()}
    elif container != "bare":
        state = {container: state, "optimizer": {"step": 3}, "meta": {"epoch": 12}}
    report = load_official(target, state)
    assert report.complete
    assert len(report.loaded) == len(source.state_dict())
    assert equal(source, target)


def test_a_whole_detector_round_trips_and_gives_its_backbone(detector):
    state = released(detector)
    assert "backbone.branch3.blocks.0.gamma_1" in state
    assert {"neck.lateral_convs.0.conv.weight", "neck.fpn_convs.3.conv.bias", "rpn_head.rpn_cls.weight"} <= set(state)
    assert {"roi_head.bbox_head.shared_fcs.1.bias", "roi_head.mask_head.upsample.weight"} <= set(state)
    # Nothing of the detector is left without a released name but its anchors and pixel statistics.
    assert set(detector.state_dict()) - set(official_names(detector)) <= {"pixel_mean", "pixel_std"} | {
        k for k in detector.state_dict() if "cell_anchors" in k
    }
    other = instantiate(detector.config)
    assert load_official(other, {"state_dict": state}).complete
    assert equal(detector, other)
    backbone = instantiate(detector.config.backbone.bottom_up)
    report = load_official(backbone, state)
    assert report.complete
    assert all(not name.startswith("backbone.") for name in report.ignored)
    assert equal(detector.backbone.bottom_up, backbone)


def test_a_bare_backbone_goes_into_a_detector(detector):
    backbone = instantiate(detector.config.backbone.bottom_up)
    with pytest.raises(CheckpointError, match="does not fit the model exactly"):
        load_official(detector, released(backbone))
    report = load_official(detector, released(backbone), strict=False)
    assert report.missing
    assert all(not name.startswith("backbone.bottom_up.") for name in report.missing)
    assert equal(detector.backbone.bottom_up, backbone)


@pytest.fixture
def detector():
    config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py").model
    for branch, width in zip(config.backbone.bottom_up.branches, (32, 64, 96), strict=True):
        branch.update(embed_dim=width, depth=2, num_heads=width // 16)
    config.backbone.bottom_up.interaction_indexes = 2
    config.roi_heads.box_head.fc_dims = [64, 64]
    config.roi_heads.box_predictor.input_shape.channels = 64
    model = instantiate(config)
    model.config = config
    return model


def test_a_model_for_other_positions_is_resized_and_reported():
    source = PIIP([ViTBranch(32, 2, 2, pretrain_img_size=128)], [224], 2)
    target = PIIP([ViTBranch(32, 2, 2, pretrain_img_size=64)], [224], 2)
    report = load_official(target, released(source))
    assert report.resized == ["branches.0.pos_embed"]


def test_four_branch_checkpoints_with_either_width():
    intended = tiny((16, 32, 64, 96))
    as_released = tiny((32, 32, 64, 96))
    target = tiny((16, 32, 64, 96))
    assert load_official(target, released(intended)).complete
    assert equal(target, intended)
    assert load_official(target, released(as_released)).complete
    assert equal(target, as_released)
    assert target.branches[0].out_channels[-1] == 32
    assert target(torch.randn(1, 3, 64, 64))["c4"].shape == (1, 96, 4, 4)


def test_the_released_four_branch_class_takes_either_width():
    args = reference.case("piip/tiny_3branch")["args"]
    args["branch4"] = {**args["branch3"], "real_size": 256, "embed_dim": 16, "num_heads": 1}
    intended = build_from_official("PIIPFourBranch", args)
    assert intended.branches[0].out_channels[-1] == 16
    as_released = copy.deepcopy(intended)
    as_released.replace_branch(0, copy.deepcopy(as_released.branches[1]))
    for source in (intended, as_released):
        target = build_from_official("PIIPFourBranch", args)
        assert load_official(target, released(source)).complete
        assert equal(source, target)


def test_own_checkpoints_of_the_wider_fourth_branch_are_found_again(tmp_path):
    source = tiny((32, 32, 64, 96))
    torch.save({"model": source.state_dict()}, tmp_path / "own.pth")
    target = tiny((16, 32, 64, 96))
    assert load_weights(target, str(tmp_path / "own.pth")).complete
    assert equal(source, target)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            tiny((32, 64)),
            "2-branch PIIP of widths 32/64 and .*, the model is a 3-branch PIIP of widths 32/64/96 and depths 2/2/2 ",
        ),
        (tiny((48, 80, 128)), "3-branch PIIP of widths 48/80/128"),
        (SingleBranch(ViTBranch(96, 2, 2)), "a single network of width 96 and depth 2"),
        (nn.Linear(2, 2), "something else"),
    ],
)
def test_checkpoints_of_another_model_are_named_and_change_nothing(other, message):
    model = tiny()
    before = copy.deepcopy(model)
    state = other.state_dict() if isinstance(other, nn.Linear) else released(other)
    with pytest.raises(CheckpointError, match=message):
        load_official(model, state, strict=False)
    assert equal(before, model)


def test_strict_loading_tells_what_is_missing_and_unexpected():
    model = tiny()
    state = released(model)
    del state["merge_branch1.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing: merge.projections.2.0.weight\n  unexpected: extra.weight"):
        load_official(model, state)
    report = load_official(model, state, strict=False)
    assert (report.missing, report.unexpected) == (["merge.projections.2.0.weight"], ["extra.weight"])


def test_what_is_left_of_a_matching_model_is_warned_of(tmp_path, caplog, detector):
    model = tiny()
    state = released(model)
    del state["merge_branch1.0.weight"]
    load_official(model, state, strict=False)
    assert "1 tensors of the backbone are missing" in caplog.text
    assert "merge.projections.2.0.weight" in caplog.text
    torch.save({"model": {k: v for k, v in model.state_dict().items() if k != "merge.weights.0"}}, tmp_path / "own.pth")
    caplog.clear()
    load_weights(model, str(tmp_path / "own.pth"))
    assert "merge.weights.0" in caplog.text
    # Parts around the backbone, and a pretrained network for one branch, are no surprise.
    caplog.clear()
    load_official(detector, released(detector.backbone.bottom_up), strict=False)
    headless = {k: v for k, v in detector.state_dict().items() if "roi_heads" not in k}
    torch.save({"model": headless}, tmp_path / "headless.pth")
    report = load_weights(detector, str(tmp_path / "headless.pth"))
    assert all(name.startswith("roi_heads.") for name in report.missing)
    torch.save({k: v for k, v in ViTBranch(64, 2, 4).state_dict().items() if "ls" not in k}, tmp_path / "vit.pth")
    assert load_weights(model, str(tmp_path / "vit.pth")).missing
    assert caplog.text == ""


def test_strict_loading_tells_what_both_are(detector):
    with pytest.raises(
        CheckpointError, match=r"looks like a 3-branch PIIP of .* 2/2/2 \(DeiT kind\), the model is a .* R"
    ):
        load_official(detector, released(detector.backbone.bottom_up))


def test_heads_of_segmentation_checkpoints_are_ignored():
    model = tiny()
    heads = {"decode_head.conv_seg.weight": torch.zeros(1), "auxiliary_head.conv_seg.weight": torch.zeros(1)}
    assert load_official(model, {**released(model, "backbone."), **heads}).ignored == list(heads)


def test_unused_level_of_dino_checkpoints_is_ignored():
    model = PIIP([ViTBranch(32, 2, 2)], [224], 2, out_features=["c3", "c4", "c5"])
    state = {**released(model), "fpn1.0.weight": torch.zeros(32, 32, 2, 2)}
    assert load_official(model, state).ignored == ["fpn1.0.weight"]


def test_load_weights_knows_own_and_released_files(tmp_path):
    source = tiny()
    torch.save({"model": source.state_dict(), "iteration": 7}, tmp_path / "own.pth")
    torch.save({"state_dict": released(source, "backbone.")}, tmp_path / "released.pth")
    for name in ("own.pth", "released.pth"):
        target = tiny()
        assert load_weights(target, str(tmp_path / name)).complete
        assert equal(source, target)


def test_load_weights_leaves_out_a_head_for_other_classes(tmp_path, detector):
    torch.save({"model": detector.state_dict()}, tmp_path / "coco.pth")
    detector.config.roi_heads.num_classes = 3
    own = instantiate(detector.config)
    report = load_weights(own, str(tmp_path / "coco.pth"))
    assert [name.split(":")[0].split(".")[-2] for name in report.mismatched] == [
        "cls_score", "cls_score", "bbox_pred", "bbox_pred", "predictor", "predictor",
    ]  # fmt: skip
    assert not report.missing


def test_pretrained_networks_go_to_the_branches_that_name_them(tmp_path):
    timm_style = {
        "cls_token": torch.zeros(1, 1, 32),
        "pos_embed": torch.randn(1, 65, 32),  # 8 x 8 and the class token
        "patch_embed.proj.weight": torch.randn(32, 3, 14, 14),
        "norm.weight": torch.ones(32),
        "head.weight": torch.zeros(1000, 32),
    }
    donor = ViTBranch(32, 2, 2).state_dict()
    blocks = {k: torch.randn_like(v) for k, v in donor.items() if k.startswith("blocks.") or "bias" in k}
    timm_style.update({k: v for k, v in blocks.items() if "ls" not in k})  # DeiT has no layer scale
    torch.save({"model": timm_style}, tmp_path / "deit.pth")
    model = PIIP(
        [ViTBranch(32, 2, 2, pretrain_img_size=64, weights=str(tmp_path / "deit.pth")), ViTBranch(64, 2, 2)],
        [224, 160],
        2,
    )
    report = load_pretrained(model)
    assert set(report.resized) == {"branches.0.pos_embed", "branches.0.patch_embed.proj.weight"}
    assert set(report.ignored) == {"branches.0.cls_token", "branches.0.norm.weight", "branches.0.head.weight"}
    assert all(name.endswith("gamma") for name in report.missing)
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(model.branches[0].state_dict()[key], timm_style[key])
    assert load_pretrained(nn.Linear(1, 1)).loaded == []
    model.branches[1].weights = str(tmp_path / "deit.pth")
    with pytest.raises(CheckpointError, match=r"deit\.pth.*single network of width 32.*single network of width 64"):
        load_pretrained(model)


def test_a_single_network_as_start_goes_to_the_branch_of_its_size(tmp_path):
    torch.save(ViTBranch(64, 2, 4).state_dict(), tmp_path / "vit.pth")
    assert all(n.startswith("branches.1.") for n in load_weights(tiny(), str(tmp_path / "vit.pth")).loaded)
    with pytest.raises(CheckpointError, match=r"width 64 and depth 2 \(DeiT kind\), which fits 0 branches"):
        load_weights(tiny((32, 48, 96)), str(tmp_path / "vit.pth"))


def test_unknown_released_classes_and_arguments_are_named():
    args = reference.case("piip/tiny_3branch")["args"]
    with pytest.raises(ConfigError, match=r"PIIPThreeBranches.*Did you mean 'PIIPThreeBranch'"):
        build_from_official("PIIPThreeBranches", args)
    with pytest.raises(ConfigError, match="n_pints"):
        build_from_official("PIIPThreeBranch", {**args, "n_pints": 4})
    args["branch2"]["pretrained"] = "mae.pth"
    with pytest.raises(ConfigError, match=r"mae\.pth"):
        build_from_official("PIIPThreeBranch", args)
