"""A checkpoint of another model is refused with words, by both names, before anything is loaded or exchanged."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from detectron2.config import LazyConfig
from torch import nn

from piip.checkpoint import load_official, to_official
from piip.checkpoint.adapt import adapt_to_checkpoint
from piip.checkpoint.load import match_weights
from piip.errors import CheckpointError
from piip.modeling import PIIP, InternViTBranch, TimmBranch, ViTBranch
from piip.modeling.without_weights import build_on_meta
from tests.engine.test_families import CONFIG
from tests.model_zoo.models import on_meta

SBL = "mask_rcnn_piip_sbl_1568_1120_672_1x"
TSBL = "mask_rcnn_piip_tsbl_1568_1120_672_448_1x"
H6B, LH6B = "mask_rcnn_piip_h6b_1024_512_1x", "mask_rcnn_piip_lh6b_1536_1024_512_1x"
BEIT, MAE, AUGREG, DINOV2, UNIPERCEIVER, SPEEDUP = (
    f"mask_rcnn_piip_sbl_1568_1120_672_{name}_1x"
    for name in ("beitv2", "mae", "augreg", "dinov2", "uniperceiver", "augreg_speedup")
)
VIT_B = "mask_rcnn_vit_b_1024_1x"


def packaged(name: str) -> nn.Module:
    return on_meta(f"COCO-InstanceSegmentation/{name}.py")


@cache
def by_names(model: nn.Module, names: str) -> dict[str, torch.Tensor]:
    return model.state_dict() if names == "ours" else to_official(model)


@pytest.mark.parametrize("names", ["ours", "released"])
@pytest.mark.parametrize(
    ("model", "checkpoint", "message"),
    [
        (SBL, TSBL, r"looks like a 4-branch PIIP .* the model is a 3-branch PIIP"),
        (TSBL, SBL, r"looks like a 3-branch PIIP .* the model is a 4-branch PIIP"),
        (H6B, LH6B, r"looks like a 3-branch PIIP .* the model is a 2-branch PIIP"),
        (LH6B, H6B, r"looks like a 2-branch PIIP .* the model is a 3-branch PIIP"),
        (SBL, BEIT, r"looks like a 3-branch .*BEiT.*, the model is .*DeiT kind\)"),
        (SBL, UNIPERCEIVER, r"looks like a 3-branch .*Uni-Perceiver.*, the model is .*DeiT kind\)"),
        (SBL, AUGREG, r"looks like a 3-branch .*InternViT kind.*, the model is .*DeiT kind\)"),
        (AUGREG, SBL, r"looks like a 3-branch .*DeiT kind.*, the model is .*InternViT kind\)"),
        (AUGREG, SPEEDUP, "without projections and norms, the model .* with deformable .* projections and norms"),
        (SPEEDUP, AUGREG, "projections and norms and .*, the model .*without projections and norms"),
        (SBL, VIT_B, r"looks like a single network .*, the model is a 3-branch PIIP"),
        (VIT_B, SBL, r"looks like a 3-branch PIIP .*, the model is a single network"),
    ],
)
def test_pairs_of_packaged_configs(model, checkpoint, message, names):
    target, tensors = packaged(model), by_names(packaged(checkpoint), names)
    before = {name: tensor.shape for name, tensor in target.state_dict().items()}
    finest = target.backbone.bottom_up.branches[0] if hasattr(target.backbone.bottom_up, "branches") else None
    with pytest.raises(CheckpointError, match=message) as caught:
        match_weights(target, tensors)
    assert "choose the config that belongs to the checkpoint." in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        load_official(target, tensors, strict=False)
    adapt_to_checkpoint(target, tensors)
    assert {name: tensor.shape for name, tensor in target.state_dict().items()} == before
    assert finest is None or target.backbone.bottom_up.branches[0] is finest


@pytest.mark.parametrize("names", ["ours", "released"])
@pytest.mark.parametrize(("model", "checkpoint"), [(AUGREG, MAE), (MAE, DINOV2), (DINOV2, AUGREG)])
def test_networks_that_differ_in_their_training_alone(model, checkpoint, names):
    _, report = match_weights(packaged(model), by_names(packaged(checkpoint), names))
    assert report.complete


FAMILIES = LazyConfig.load(CONFIG).families


@cache
def family(name: str) -> nn.Module:
    return build_on_meta(FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_its_own_checkpoints_alone(name):
    for other in FAMILIES:
        for names in ("ours", "released"):
            tensors = by_names(family(other), names)
            if other == name:
                assert match_weights(family(name), tensors)[1].complete
                continue
            if other == "single" and names == "released" and name in ("deit", "internvit"):
                # As any pretrained network, a single one is a start for the branch of its size.
                report = match_weights(family(name), tensors)[1]
                assert [n for n in report.missing if not n.startswith("branches.1.")]
                continue
            with pytest.raises(CheckpointError):
                match_weights(family(name), tensors)


def pyramid(steps=2, interaction=None, coarse=64, mlp=4.0, **kwargs):
    branches = [ViTBranch(32, 4, 2), InternViTBranch(coarse, 4, coarse // 16, mlp_ratio=mlp)]
    return PIIP(branches, [224, 160], steps, {"num_heads": 4, **(interaction or {})}, **kwargs)


@pytest.mark.parametrize("names", ["ours", "released"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (pyramid(4), "has 4 interaction steps of 4 units in all .*, the model 2 interaction steps of 2 units"),
        (pyramid(interaction={"with_proj": False}), "without projections, the model .* projections and norms"),
        (pyramid(interaction={"ffn_ratio": 0}), "without feed-forward networks, the model .* feed-forward networks;"),
        (pyramid(interaction={"attention": "dense"}), "with dense attention .* with deformable attention"),
        (pyramid(interaction={"num_heads": 8}), r"tensors of the model's interactions are missing .* shape there"),
        (pyramid(interaction_pairs=[]), "has no interactions, the model 2 interaction steps"),
        (pyramid(mlp=2.0), r"tensors of the model's branches\.1 are missing .* another shape there"),
        (pyramid(coarse=96), r"PIIP of widths 32/96 .* the model is a 2-branch PIIP of widths 32/64"),
    ],
)
def test_what_differs_is_told(other, message, names):
    model = pyramid()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        match_weights(model, by_names(other, names))
    if names == "released":
        with pytest.raises(CheckpointError, match=message):
            load_official(model, by_names(other, names), strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_networks_of_timm_of_one_interface():
    def make(name):
        return PIIP([ViTBranch(32, 4, 2), TimmBranch(name, weights=None)], [224, 160], 2, {"num_heads": 4})

    model, other = make("test_vit"), make("test_vit2")
    for names in ("ours", "released"):
        assert match_weights(model, by_names(model, names))[1].complete
        with pytest.raises(CheckpointError, match="belongs to the checkpoint"):
            match_weights(model, by_names(other, names))


def test_models_without_a_pyramid_take_what_fits():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    fitted, report = match_weights(model, {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)})
    assert sorted(fitted) == ["0.bias", "0.weight"]
    assert report.missing == ["1.weight", "1.bias"]
