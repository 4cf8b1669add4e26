"""Segmentation heads: published sizes, values against plain formulas on released names, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from piip.checkpoint.official import _rename
from piip.checkpoint.official_sem_seg import UPERNET_RULES
from piip.errors import ConfigError
from piip.modeling.sem_seg import SemanticFPNHead, UPerNetHead, pixel_loss


def shapes(name: str, levels: tuple[int, ...], channels: int) -> dict[str, ShapeSpec]:
    return {f"{name}{k}": ShapeSpec(channels=channels, stride=2**k) for k in levels}


def maps(wanted: dict[str, ShapeSpec], height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    """Random features of an image; sides are rounded up, as by convolutions with padding."""
    torch.manual_seed(1)
    return {k: torch.randn(batch, s.channels, -(-height // s.stride), -(-width // s.stride)) for k, s in wanted.items()}


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.2).add_(1.0 if name.endswith(("running_var", "norm.weight")) else 0.0).abs_()
    return module


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_semantic_fpn_has_the_published_size() -> None:
    assert count(SemanticFPNHead(shapes("p", (3, 4, 5, 6), 256), num_classes=150)) == 1_643_158


def test_semantic_fpn_is_detectron2s_where_that_works() -> None:
    inputs = shapes("p", (3, 4, 5, 6), 16)
    settings = {"num_classes": 5, "conv_dims": 8, "common_stride": 8, "norm": "BN"}
    ours = randomise(SemanticFPNHead(inputs, **settings)).eval()
    theirs = SemSegFPNHead(inputs, ignore_value=255, **settings).eval()
    theirs.load_state_dict(ours.state_dict())
    x = maps(inputs, 128, 192)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    assert ours(x)[0].shape == (2, 5, 128, 192)


def test_semantic_fpn_of_sides_that_do_not_halve() -> None:
    inputs = shapes("p", (3, 4, 5, 6), 16)
    head = randomise(SemanticFPNHead(inputs, num_classes=5, conv_dims=8, norm="BN")).eval()
    x = maps(inputs, 96, 160)  # stride 64: 2 x 3, and 16 x 24 at stride 8 instead of 12 x 20
    logits = head(x)[0]
    assert logits.shape == (2, 5, 96, 160)
    total = sum(F.interpolate(h(x[n]), (12, 20), mode="bilinear") for n, h in zip(x, head.scale_heads, strict=True))
    assert torch.allclose(logits, F.interpolate(head.predictor(total), (96, 160), mode="bilinear"), atol=1e-5)


def test_dropout_is_for_training_alone() -> None:
    inputs = shapes("p", (3, 4), 16)
    head = randomise(SemanticFPNHead(inputs, num_classes=5, conv_dims=32, norm="GN", dropout=0.5))
    x = maps(inputs, 32, 32)
    assert not torch.equal(head.layers(x), head.layers(x))
    head.eval()
    assert torch.equal(head.layers(x), head.layers(x))


@pytest.fixture(scope="module")
def upernet() -> UPerNetHead:
    head = UPerNetHead(
        shapes("c", (2, 3, 4, 5), 12), num_classes=5, channels=8, auxiliary_feature="c4", auxiliary_channels=6
    )
    return randomise(head)


def released(head: UPerNetHead) -> dict[str, Tensor]:
    return {_rename(f"sem_seg_head.{name}", UPERNET_RULES): tensor for name, tensor in head.state_dict().items()}


def conv(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A released unit of convolution, norm and ReLU."""
    kernel = w[f"{name}.conv.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    stats = (w[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *stats).relu()


def resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def test_upernet_by_its_formula_on_released_names(upernet: UPerNetHead) -> None:
    upernet.eval()
    w, features = released(upernet), maps(upernet.input_shape, 96, 128)
    x = list(features.values())
    pooled = [
        resize(conv(w, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(x[3], side)), x[3])
        for i, side in enumerate((1, 2, 3, 6))
    ]
    levels = [conv(w, f"decode_head.lateral_convs.{i}", x[i]) for i in range(3)]
    levels.append(conv(w, "decode_head.bottleneck", torch.cat([x[3], *pooled], 1)))
    for i in (2, 1, 0):
        levels[i] = levels[i] + resize(levels[i + 1], levels[i])
    outputs = [conv(w, f"decode_head.fpn_convs.{i}", levels[i]) for i in range(3)] + [levels[3]]
    fused = conv(w, "decode_head.fpn_bottleneck", torch.cat([resize(y, outputs[0]) for y in outputs], 1))
    logits = F.conv2d(fused, w["decode_head.conv_seg.weight"], w["decode_head.conv_seg.bias"])
    expected = F.interpolate(logits, (96, 128), mode="bilinear")
    result, losses = upernet(features)
    assert losses == {}
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_every_tensor_of_upernet_has_a_released_name(upernet: UPerNetHead) -> None:
    names = set(released(upernet))
    assert len(names) == len(upernet.state_dict())
    units = [f"decode_head.psp_modules.{i}.1" for i in range(4)]
    units += [f"decode_head.{part}.{i}" for part in ("lateral_convs", "fpn_convs") for i in range(3)]
    units += ["decode_head.bottleneck", "decode_head.fpn_bottleneck", "auxiliary_head.convs.0"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{unit}.conv.weight" for unit in units} | {f"{unit}.bn.{key}" for unit in units for key in norm}
    expected |= {f"{head}.conv_seg.{key}" for head in ("decode_head", "auxiliary_head") for key in ("weight", "bias")}
    assert names == expected


def test_auxiliary_loss_counts_in_training_alone(upernet: UPerNetHead) -> None:
    features = maps(upernet.input_shape, 64, 64)
    targets = torch.randint(0, 5, (2, 64, 64))
    upernet.eval()
    with torch.no_grad():
        expected = 0.4 * pixel_loss(upernet.auxiliary(features["c4"]), targets, 255)
    assert set(upernet(features)[1]) == set()
    upernet.train()
    upernet.auxiliary.eval()
    _, losses = upernet(features, targets)
    assert set(losses) == {"loss_sem_seg", "loss_auxiliary"}
    assert torch.allclose(losses["loss_auxiliary"], expected)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in upernet.parameters())


def test_align_corners_reaches_all_resizing() -> None:
    inputs = shapes("c", (2, 3), 12)
    heads = [UPerNetHead(inputs, num_classes=3, channels=8, align_corners=flag).eval() for flag in (True, False)]
    heads[1].load_state_dict(randomise(heads[0]).state_dict())
    x = maps(inputs, 32, 32)
    assert not torch.allclose(heads[0](x)[0], heads[1](x)[0])


def test_pixels_without_a_label_do_not_count() -> None:
    logits = torch.randn(1, 3, 4, 4)
    targets = torch.randint(0, 3, (1, 8, 8))
    targets[:, 4:] = 255
    upsampled = F.interpolate(logits, (8, 8), mode="bilinear")
    expected = F.cross_entropy(upsampled[:, :, :4], targets[:, :4])
    assert torch.allclose(pixel_loss(logits, targets, 255), expected)
    targets[:] = 255
    assert pixel_loss(logits.requires_grad_(), targets, 255) == 0


def test_one_image_is_too_little_for_batch_norms(upernet: UPerNetHead) -> None:
    upernet.train()
    with pytest.raises(ConfigError, match="at least two images per process"):
        upernet(maps(upernet.input_shape, 64, 64, batch=1), torch.zeros(1, 64, 64, dtype=torch.long))
    head = UPerNetHead(shapes("c", (2, 3), 12), num_classes=5, channels=64, norm="GN")
    assert head(maps(head.input_shape, 32, 32, batch=1), torch.zeros(1, 32, 32, dtype=torch.long))[1]


def test_one_pixel_is_too_little_for_batch_norms() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    for norm in ("BN", "SyncBN", "GN"):
        head = SemanticFPNHead(shapes("p", (3, 6), 32), num_classes=5, norm=norm)
        assert head(maps(head.input_shape, 128, 64, batch=1), labels)[1]
        if norm == "GN":
            assert head(maps(head.input_shape, 64, 64, batch=1), labels)[1]
            continue
        with pytest.raises(ConfigError, match="train on larger images or at least two per process"):
            head(maps(head.input_shape, 64, 64, batch=1), labels)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"auxiliary_feature='c6' must be one of \['c2', 'c3'\]"):
        UPerNetHead(shapes("c", (2, 3), 12), num_classes=5, auxiliary_feature="c6")
    with pytest.raises(ConfigError, match="two maps at least"):
        UPerNetHead(shapes("c", (2,), 12), num_classes=5)
