"""What checkpoints look like, by released and by our names."""

from __future__ import annotations

import pytest
import torch

from piip import model_zoo
from piip.checkpoint import to_official
from piip.checkpoint.describe import branches_of, describe
from piip.modeling import PIIP, SingleBranch, ViTBranch
from piip.modeling.without_weights import build_on_meta
from tests.checkpoint.test_convert import MODELS

SIX_B = "InternViT kind with RMSNorm and QK norm"
LOOKS = {
    "1 branch": "a 1-branch PIIP of widths 32 and depths 2 (DeiT kind)",
    "4 branches": "a 4-branch PIIP of widths 32/48/64/96 and depths 2/2/2/2 (DeiT kind)",
    "InternViT": f"a 2-branch PIIP of widths 32/64 and depths 2/2 (InternViT kind, {SIX_B})",
    "BEiT": "a 2-branch PIIP of widths 32/64 and depths 2/2 (DeiT kind, BEiT)",
    "Uni-Perceiver": "a 2-branch PIIP of widths 32/64 and depths 2/2 (DeiT kind, Uni-Perceiver)",
    "ConvNeXt": "a 2-branch PIIP of widths 64/128 and depths 4/4 (ConvNeXt)",
    "hybrid": "a 3-branch PIIP of widths 64/64/128 and depths 4/4/4 (ConvNeXt, DeiT kind, ConvNeXt)",
    "single": "a single network of width 32 and depth 2 (DeiT kind)",
    "single, RMS": f"a single network of width 32 and depth 2 ({SIX_B})",
    "single ConvNeXt": "a single network of width 64 and depth 4 (ConvNeXt)",
}


@pytest.mark.parametrize("kind", LOOKS)
def test_backbones(kind):
    model = MODELS[kind]()
    assert describe(model.state_dict()) == LOOKS[kind]
    assert describe(to_official(model)) == LOOKS[kind]
    assert describe({f"backbone.{name}": t for name, t in to_official(model).items()}) == LOOKS[kind]


@pytest.mark.parametrize("kind", ["Mask R-CNN", "DINO", "Cascade Mask R-CNN"])
def test_detectors(kind):
    model = MODELS[kind]()
    for tensors in (model.state_dict(), to_official(model)):
        assert describe(tensors).endswith(f" (DeiT kind) in a {kind}")


def test_the_largest_model():
    model = build_on_meta(model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_piip_h6b_1024_512_1x").model)
    assert describe(model.state_dict()) == (
        f"a 2-branch PIIP of widths 1280/3200 and depths 32/48 (InternViT kind, {SIX_B}) in a Mask R-CNN"
    )


def test_what_is_no_model_of_ours():
    assert describe({}) == "something else"
    assert describe({"fc.weight": torch.ones(1)}) == "something else (fc.weight, ...)"
    pretrained = {"cls_token": torch.ones(1, 1, 32), **SingleBranch(ViTBranch(32, 2, 2)).branch.state_dict()}
    assert describe(pretrained) == "a single network of width 32 and depth 2 (ViT)"


def test_branches_come_finest_first():
    model = PIIP([ViTBranch(w, 2, w // 16) for w in (32, 64, 96)], [224, 160, 96], 2, {"num_heads": 4})
    for tensors in (model.state_dict(), to_official(model)):
        assert [len(b["patch_embed.proj.bias"]) for b in branches_of(tensors)] == [32, 64, 96]
