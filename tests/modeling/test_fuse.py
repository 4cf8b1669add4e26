"""Fusing LSNet for inference."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.config import instantiate
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from piip import model_zoo
from piip.errors import ConfigError
from piip.modeling import PIIP, LSNet, LSNetFPN, ViTBranch, fuse
from piip.modeling.branches import LSNetBranch
from piip.modeling.lsnet.blocks import LSConv
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
    with torch.device("meta"):
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


def test_a_detector_of_the_zoo_is_fused():
    cfg = model_zoo.get_config("COCO-Detection/retinanet_lsnet_t_1x")
    model = instantiate(cfg.model).eval()
    image = [{"image": torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)}]
    with torch.no_grad():
        want, got = (m(image)[0]["instances"] for m in (model, fuse(model)))
    torch.testing.assert_close(got.scores, want.scores, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_fused_is_told():
    model = LSNet(**TINY)
    with pytest.raises(ConfigError, match="LSNet in training mode cannot be fused; call its eval"):
        fuse(model)
    with pytest.raises(ConfigError, match="Linear has no LSNet parts left"):
        fuse(nn.Linear(2, 2).eval())
    fused = fuse(model.eval())
    with pytest.raises(ConfigError, match="no LSNet parts left"):
        fuse(fused)
    assert fused.train().training
