"""Every suite's cases at their smallest: what is compared agrees, what disagrees is not timed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import timm
import torch
from torch import nn

from piip.analysis import build_on_meta
from piip.benchmark import Row, Settings, backbones, forms, pyramids, training
from piip.benchmark.attention import AttentionCase
from piip.benchmark.backbones import BackboneCase
from piip.benchmark.data_loading import DataCase
from piip.benchmark.detectors import DetectorCase
from piip.benchmark.folding import fold_norms
from piip.benchmark.memory import MemoryCase
from piip.benchmark.peers import VITS
from piip.benchmark.pyramids import PyramidCase
from piip.benchmark.scaling import ScalingCase, exponent
from piip.benchmark.suites import SUITES, cases
from piip.benchmark.training import TrainingCase
from piip.errors import ConfigError
from piip.layers import PointwiseConv2d
from piip.model_zoo import get_config
from piip.modeling.fuse import fuse

ONCE = Settings(rounds=1, seconds=1e-6)


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VITS, "X", (64, 3, 2))


def by_name(rows: Sequence[Row]) -> dict[str, Row]:
    assert all(row.ms > 0 and row.ratio > 0 for row in rows)
    assert rows[0].ratio == 1
    return {row.name: row for row in rows}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(dtype: torch.dtype) -> None:
    case = AttentionCase("small", 2, 64, 2, backward=True)
    rows = by_name(case.measure(dataclasses.replace(ONCE, dtype=dtype)))
    assert list(rows) == ["written out", "fused", "copy of q, k, v"]
    # Forward: two products of 64 x 64 x 64 for each of four.
    assert rows["fused"].numbers["gmacs"] == pytest.approx(3 * 2 * 4 * 64**3 / 1e9)
    assert rows["fused"].numbers["error"] < 0.1


def test_lsnet_in_all_forms() -> None:
    case = BackboneCase("lsnet_t", ("mobilenetv4_conv_small",), batch=1, side=64)
    rows = by_name(case.measure(ONCE))
    assert next(iter(rows)) == "unfold, fused"
    assert {"plain PyTorch, fused", "kernels", "kernels, fused", "mobilenetv4_conv_small, channels last"} <= set(rows)
    assert all(row.numbers["gmacs"] > 0 and row.numbers["peak_mb"] > 0 for row in rows.values())
    assert rows["unfold, fused"].numbers["launches"] > rows["kernels, fused"].numbers["launches"] > 100


def test_norms_of_peers_are_folded() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    network = backbones.create("mobilenetv4_conv_small", ONCE)
    folded = fold_norms("a peer", network, image)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (network, folded)]
    assert norms[0] > 40
    assert norms[1] == 0
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), network(image), rtol=1e-4, atol=1e-4)


def test_a_norm_whose_convolution_also_gives_to_another_is_not_folded_silently() -> None:
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    with pytest.raises(ArithmeticError, match="a peer: differs from the plain form"):
        fold_norms("a peer", TwoReaders().eval(), torch.randn(1, 3, 4, 4))


def test_piip_in_all_forms_and_single_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "gmacs", lambda network, image: 1.0)  # takes seconds
    rows = by_name(PyramidCase("XX", (64, 32), peers="X", peer_side=64).measure(ONCE))
    assert list(rows) == ["published form", "ours", "ours, fused", "ViT-X 64, fused", "ViT-X 64, fused, timm"]
    for name in ("ours", "ours, fused", "ViT-X 64, fused, timm"):
        assert rows[name].numbers["error"] < 1e-4
    assert rows["ours"].numbers["peak_mb"] > 0
    launches = [row.numbers["launches"] for row in rows.values()]
    assert launches[0] > launches[1] > launches[2] > launches[3]


def test_images_of_a_batch_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "gmacs", lambda network, image: 1.0)
    case = PyramidCase("XX", (64, 32), peers="X", peer_side=64, brief=True, batch=2, device="cuda")
    assert case.name == "PIIP-XX 64/32 B2 beside ViT-X 64"
    rows = by_name(case.measure(ONCE))
    assert list(rows) == ["published form", "ours, fused", "ViT-X 64, fused"]
    assert all(row.numbers["images_per_s"] == pytest.approx(2000 / row.ms) for row in rows.values())


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramids, "as_released", lambda model: nn.Sequential(model, _Doubled()))
    with pytest.raises(ArithmeticError, match=r"PIIP-XX 64/32, ours: differs from the plain form by 5\.0e-01"):
        PyramidCase("XX", (64, 32), peers="").measure(ONCE)


class _Doubled(nn.Module):
    def forward(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 2 * x for name, x in maps.items()}


@pytest.mark.parametrize("model", ["PIIP-XX", "LSNet-T"])
def test_training_step(model: str) -> None:
    resolutions = (128, 64) if model == "PIIP-XX" else (64,)
    rows = by_name(TrainingCase(model, resolutions, 2).measure(ONCE))
    if model == "PIIP-XX":
        assert list(rows) == ["published form", "ours", "ours, recomputed"]
        assert rows["ours, recomputed"].numbers["peak_mb"] < rows["ours"].numbers["peak_mb"]
        assert rows["ours, recomputed"].numbers["saved_mb"] < rows["ours"].numbers["saved_mb"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_steps_with_a_wrong_gradient_are_not_timed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negated(aggregate: Callable[..., torch.Tensor], model: nn.Module) -> nn.Module:
        """Its losses and sizes of gradients are right; in half precision it takes more than one small parameter."""
        model = backbones.with_aggregation(aggregate, model)
        for parameter in list(model.parameters())[: 1 if dtype == torch.float32 else None]:
            parameter.register_hook(lambda grad: -grad)
        return model

    monkeypatch.setattr(training, "with_aggregation", negated)
    with pytest.raises(ArithmeticError, match=r"LSNet-B 64 B1 .*, ours: loss or gradients differ by 2\.0e\+00"):
        TrainingCase("LSNet-B", (64,), 1).measure(dataclasses.replace(ONCE, dtype=dtype))


def test_activations_of_single_parts_are_recomputed() -> None:
    rows = by_name(TrainingCase("PIIP-XX", (128, 64), 1, parts=True).measure(ONCE))
    saved = {name: row.numbers["saved_mb"] for name, row in rows.items()}
    parts = ["ours, X at 128 recomputed", "ours, X at 64 recomputed", "ours, interactions recomputed"]
    assert all(saved["ours, recomputed"] < saved[name] < saved["ours"] for name in parts)
    # What the parts save together is what all save at once.
    assert sum(saved["ours"] - saved[name] for name in parts) == pytest.approx(
        saved["ours"] - saved["ours, recomputed"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_detector(training: bool, dtype: torch.dtype) -> None:
    case = DetectorCase("Mask R-CNN", (("quickstart/mask_rcnn_lsnet_digits.py", (128, 128)),), training)
    (row,) = case.measure(dataclasses.replace(ONCE, dtype=dtype))
    assert row.environment["dtype"] == str(dtype).removeprefix("torch.")
    assert 0 < row.numbers["backbone_share"] < 1
    assert row.numbers["images_per_s"] == pytest.approx(1000 / row.ms)


@pytest.mark.parametrize("kind", ["Mask R-CNN", "RetinaNet"])
def test_detectron2s_detectors(kind: str) -> None:
    (row,) = DetectorCase(kind, (("R50-FPN", (64, 64)),)).measure(dataclasses.replace(ONCE, dtype=torch.bfloat16))
    assert (row.case, row.name) == (f"{kind} inference at 64x64", "R50-FPN at 64x64")
    assert 0 < row.numbers["backbone_share"] < 1


def test_memory_on_paper() -> None:
    config = "quickstart/mask_rcnn_piip_digits"
    inference, training, recomputed = (row.numbers for row in MemoryCase(config).measure(ONCE))
    params = sum(p.numel() for p in build_on_meta(get_config(config).model).parameters())
    assert inference["fixed_gb"] == pytest.approx(2 * params / 1e9)
    # Weight, gradient and two averages in float32, and a copy of the weight in bfloat16.
    assert training["fixed_gb"] == recomputed["fixed_gb"] == pytest.approx(18 * params / 1e9)
    assert inference["image_gb"] < recomputed["image_gb"] < training["image_gb"]


def test_data() -> None:
    rows = by_name(DataCase(160).measure(ONCE))
    assert list(rows)[:2] == ["mapper", "mapper, fast resize"]
    assert rows["mapper, fast resize"].numbers["mean_difference"] < 0.1


def test_scaling_and_exponents() -> None:
    rows = ScalingCase("PIIP", "branches", (1, 2), side=64).measure(ONCE)
    assert [(row.name, row.numbers["x"]) for row in rows] == [("branches 1", 1), ("branches 2", 2)]
    assert rows[1].numbers["gmacs"] > rows[0].numbers["gmacs"]
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_suites_and_cases_by_name() -> None:
    found = {suite: cases([suite]) for suite in SUITES if suite != "ops"}
    for suite, members in found.items():
        assert len({case.name for case in members}) == len(members), suite
    assert [case.name for case in cases(["backbones"], words=["TSB 1568", "beside"])] == [
        "PIIP-TSB 1568/1120/672 beside ViT-B 1024"
    ]
    assert {case for case in backbones.CASES if case.device is None} < set(found["backbones"])
    assert not any("B256" in case.name for members in found.values() for case in members)
    on_gpu = cases(list(SUITES), device="cuda")
    assert set(found["backbones"]) < set(on_gpu)
    assert {"lsnet_t 224x224 B256 inference", "PIIP-TSB 1568/1120/672 B2 training step"} < {c.name for c in on_gpu}
    assert {"SKA 7x7 C384 B256 forward + backward", "PIIP-TSB 1568/1120/672 B8 beside ViT-B 1024"} < {
        case.name for case in on_gpu
    }
    with pytest.raises(ConfigError, match=r"there is no suite 'backbone', but ops, .* Did you mean 'backbones'"):
        cases(["backbone"])
    with pytest.raises(ConfigError, match="no case has 'TSL' in its name; there are PIIP-TS 224/160"):
        cases(["backbones"], words=["TSL"])
    with pytest.raises(ConfigError, match="no case of memory is quick enough for --quick"):
        cases(["memory"], quick=True)


def test_lsnet_is_compared_with_plain_convolutions_channels_first() -> None:
    fused = fuse(timm.create_model("lsnet_t").eval())
    plain = backbones._plain_convolutions(copy.deepcopy(fused))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert plain.patch_embed(image).is_contiguous()
        assert not fused.patch_embed(image).is_contiguous()
        torch.testing.assert_close(plain(image), fused(image), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, PointwiseConv2d) for module in fused.modules())
    assert not any(isinstance(module, PointwiseConv2d) for module in plain.modules())
