"""LSNet as a backbone and as a classifier: reference numbers, and the traps that its specification lists."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from piip.errors import CheckpointError, ConfigError
from piip.layers import ska
from piip.modeling import LSNet, LSNetClassifier
from piip.modeling.fuse import fuse
from piip.modeling.lsnet import VARIANTS
from piip.modeling.lsnet.blocks import Attention, LSConv, RepDW
from piip.modeling.lsnet.position_bias import offset_index, position_bias
from piip.modeling.lsnet.weights import resize_bias_table
from tests import reference

TINY = {"dims": (16, 24, 32, 64), "depths": (1, 2, 2, 2)}
GRADIENTS = "lsnet/lsnet_t_det_train_grads_128x160_calm"


def filled(module: nn.Module, case: dict, prefix: str = "") -> nn.Module:
    tensors = reference.lsnet_weights(case["state_dict"], case["fill_rule"])
    module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return module.eval()


def tiny(**options) -> LSNet:
    torch.manual_seed(0)
    return LSNet(**TINY, **options)


def random_norms(module: nn.Module) -> nn.Module:
    """A model whose norms and biases are those of no fresh one, so that each of them counts."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("bn.bias", "running_mean", "attention_biases")):
            tensor.normal_(0, 0.1)
    return module


def reference_loss(outs: list[torch.Tensor], seed: int) -> torch.Tensor:
    pulls = [reference.normal(seed + 1000 + k, list(out.shape)) for k, out in enumerate(outs)]
    return sum((out * pull).sum() / out.numel() for out, pull in zip(outs, pulls, strict=True))


# Reference numbers


@pytest.mark.parametrize("rule", ["calm", "base"])
def test_classifier_matches_reference(rule):
    case = reference.case(f"lsnet/lsnet_t_cls_224_{rule}")
    model, x = filled(timm.create_model("lsnet_t"), case), reference.input_of(case)
    if rule == "base":  # whose activations grow so much that float32 is not enough to compare
        model, x = model.double(), x.double()
    with torch.no_grad():
        reference.assert_matches(model(x), case["outputs"][0], rtol=1e-4)


def test_every_stage_of_a_classifier_matches_reference():
    case = reference.case("lsnet/lsnet_s_cls_stages_224_calm")
    model, x = filled(timm.create_model("lsnet_s"), case), reference.input_of(case)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        outs = [model.patch_embed(x), *maps, model.forward_head(last)]
    for out, record in zip(outs, case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)


def test_backbone_matches_reference_at_sizes_that_nothing_divides():
    case = reference.case("lsnet/lsnet_t_det_backbone_odd_203x333_calm")
    model = filled(LSNet(**VARIANTS["t"]), case)
    with torch.no_grad():
        outs = model(reference.input_of(case))
    assert list(outs) == ["c3", "c4", "c5", "c6"]
    for out, record in zip(outs.values(), case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)


def test_larger_backbone_matches_reference_in_float64():
    case = reference.case("lsnet/lsnet_s_seg_backbone_256x256_base")
    model = filled(LSNet(**VARIANTS["s"]), case).double()
    with torch.no_grad():
        outs = model(reference.input_of(case).double())
    for out, record in zip(outs.values(), case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)


def test_gradients_of_all_parameters_match_reference():
    case = reference.case(GRADIENTS)
    model = filled(LSNet(**VARIANTS["t"]), case).train()
    x = reference.input_of(case).requires_grad_()
    outs = list(model(x).values())
    for out, record in zip(outs, case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)
    loss = reference_loss(outs, case["input"]["seed"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss_value"], rel=1e-3)
    gradients = {"input": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
    records = {record["name"]: record for record in case["grads"]}
    assert gradients.keys() == records.keys()
    for name, record in records.items():
        if "samples" in record:
            reference.assert_matches(gradients[name], record, rtol=2e-4)
        else:
            assert gradients[name].double().norm().item() == pytest.approx(record["l2"], rel=2e-4), name


def test_ls_convolution_and_its_gradients_match_reference():
    case = reference.case("lsnet/lsconv_block_dim64")
    block = filled(LSConv(64), case)
    x = reference.input_of(case).requires_grad_()
    weights = block.lkp(x)
    outs = [block(x), weights, ska(x, weights)]
    for out, record in zip(outs, case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=1e-4)
    reference_loss(outs, case["input"]["seed"]).backward()
    gradients = {"input": x.grad, **{name: p.grad for name, p in block.named_parameters()}}
    for record in case["grads"]:
        reference.assert_matches(gradients[record["name"]], record, rtol=1e-4)


def test_biases_of_a_frozen_attention_are_resized_once_per_size_until_they_change():
    attention = Attention(32, 2, 4, "matrix").requires_grad_(False)
    first = attention._bias((3, 5))
    assert attention._bias((3, 5)) is first
    assert attention._bias((5, 3)) is not first
    attention.load_state_dict({**attention.state_dict(), "attention_biases": torch.randn(2, 16)})
    assert not torch.equal(attention._bias((3, 5)), first)
    assert attention.requires_grad_()._bias((3, 5)).requires_grad


@pytest.mark.parametrize("name", ["cls_dim384_4x4", "det_dim384_4x5", "det_dim384_13x21", "det_dim384_14x14"])
def test_attention_matches_reference(name):
    case = reference.case(f"lsnet/attention_{name}")
    resolution = round(case["state_dict"]["attention_biases"][1] ** 0.5)
    block = filled(Attention(384, 4, resolution, "matrix"), case)
    with torch.no_grad():
        reference.assert_matches(block(reference.input_of(case)), case["outputs"][0], rtol=1e-4)


# Attention biases


def test_biases_and_their_resizing_match_reference():
    arrays = reference.arrays("lsnet/attention_bias")
    small, large = arrays["table_4x4"], arrays["table_14x14"]
    torch.testing.assert_close(resize_bias_table(small, 196), large, rtol=1e-5, atol=1e-6)
    for side in (4, 14):
        assert torch.equal(offset_index(side), arrays[f"idx_{side}x{side}"].long())
    table = large.unflatten(1, (14, 14))
    for grid in ((2, 3), (4, 5), (5, 7)):
        want = arrays[f"bias_N{grid[0] * grid[1]}"]
        torch.testing.assert_close(position_bias(table, grid, "matrix"), want, rtol=1e-5, atol=1e-5)
    got = position_bias(table, (13, 21), "matrix")[:1, ::7, ::7]
    torch.testing.assert_close(got, arrays["bias_N273"], rtol=1e-5, atol=1e-5)


def test_biases_resized_by_offset_depend_on_the_offset_alone():
    table = torch.randn(4, 14, 14)
    bias = position_bias(table, (5, 7), "offsets").unflatten(1, (5, 7)).unflatten(3, (5, 7))
    torch.testing.assert_close(bias[:, 0, 0, 3, 2], bias[:, 1, 4, 4, 2])
    torch.testing.assert_close(bias[:, 0, 0, 0, 0], table[:, 0, 0])
    torch.testing.assert_close(bias[:, 0, 0, 4, 6], table[:, 13, 13])
    torch.testing.assert_close(position_bias(table, (14, 14), "offsets"), position_bias(table, (14, 14), "matrix"))
    mixed = position_bias(table, (5, 7), "matrix").unflatten(1, (5, 7)).unflatten(3, (5, 7))
    assert not torch.allclose(mixed[:, 0, 0, 3, 2], mixed[:, 1, 4, 4, 2])


def test_tables_that_belong_to_no_grid_are_refused():
    with pytest.raises(CheckpointError, match="table of 15 attention biases cannot be resized to 196"):
        resize_bias_table(torch.zeros(4, 15), 196)


def test_the_two_ways_of_resizing_differ_only_away_from_the_design_grid():
    one, other = (random_norms(tiny(resolution=2, bias_resize=how)).eval() for how in ("matrix", "offsets"))
    with torch.no_grad():
        for size, same in (((128, 128), True), ((192, 256), False)):
            x = torch.randn(1, 3, *size)
            assert torch.allclose(one(x)["c6"], other(x)["c6"]) == same


def test_biases_are_never_stale():
    model = random_norms(tiny()).eval()
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        before = model(x)["c6"]
        changed = {k: v + 1 if k.endswith("attention_biases") else v for k, v in model.state_dict().items()}
        changed["blocks4.3.mixer.m.attention_biases"][:, 0] = 9.0
        model.load_state_dict(changed)  # without a call of eval() afterwards
        after = model(x)["c6"]
        assert not torch.allclose(before, after)
        half = model.bfloat16()(x.bfloat16())["c6"]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), after, rtol=0.1, atol=0.1)


# The backbone


def test_sizes_are_those_of_the_specification():
    for size, dense, plain, distilled in (
        ("t", 11_027_664, 11_409_832, 11_795_600),
        ("s", 15_700_008, 16_146_304, 16_596_200),
        ("b", 22_803_184, 23_313_608, 23_827_632),
    ):
        with torch.device("meta"):
            models = (
                LSNet(**VARIANTS[size]),
                *(LSNetClassifier(**VARIANTS[size], distillation=d) for d in (False, True)),
            )
        assert [sum(p.numel() for p in m.parameters()) for m in models] == [dense, plain, distilled]


def test_statistics_are_frozen_and_affine_parameters_are_trained():
    model = tiny()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model.train() is model
    assert model.training
    sum(out.square().mean() for out in model(torch.randn(2, 3, 128, 128)).values()).backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert all(not m.training and m.weight.requires_grad and m.bias.grad is not None for m in norms)


def test_batch_norm_can_be_trained_as_a_whole_or_not_at_all():
    model = tiny(batch_norm="all").train()
    before = model.patch_embed[0].bn.running_mean.clone()
    model(torch.randn(2, 3, 128, 128))
    assert not torch.equal(before, model.patch_embed[0].bn.running_mean)
    frozen = tiny(batch_norm="none").train()
    assert not any(p.requires_grad for m in frozen.modules() if isinstance(m, _BatchNorm) for p in m.parameters())
    assert frozen.patch_embed[0].c.weight.requires_grad
    with pytest.raises(ConfigError, match="batch_norm='frozen' is unknown"):
        tiny(batch_norm="frozen")


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_parts_neither_learn_nor_drop(freeze_at):
    model = tiny(freeze_at=freeze_at, batch_norm="all", drop_path_rate=0.5).train()
    parts = [model.patch_embed, *model.stages]
    for k, part in enumerate(parts):
        assert all(p.requires_grad == (k >= freeze_at) for p in part.parameters())
        assert all(m.training == (k >= freeze_at) for m in part.modules())
    assert not any(m.training for m in model.eval().modules())


@pytest.mark.parametrize("freeze_at", [-1, 6])
def test_freezing_more_than_there_is_is_refused(freeze_at):
    with pytest.raises(ConfigError, match=f"freeze_at={freeze_at} must be from 0 to 5"):
        tiny(freeze_at=freeze_at)


def test_later_stages_than_asked_for_are_not_built():
    model = tiny(out_features=["c5", "c3"]).eval()
    assert not hasattr(model, "blocks4")
    shapes = model.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {"c3": (16, 8), "c5": (32, 32)}
    assert {name: out.shape for name, out in model(torch.randn(1, 3, 65, 33)).items()} == {
        "c3": (1, 16, 9, 5),
        "c5": (1, 32, 3, 2),
    }
    with pytest.raises(ConfigError, match=r"out_features=\['c2'\] must be some of .*Did you mean"):
        tiny(out_features=["c2"])


def test_images_smaller_than_the_last_stride_are_refused():
    model = tiny().eval()
    assert model(torch.randn(1, 3, 64, 65))["c6"].shape == (1, 64, 1, 2)
    with pytest.raises(ConfigError, match=r"\(1, 3, 63, 64\).*at least 64"):
        model(torch.randn(1, 3, 63, 64))


def test_sizes_that_do_not_fit_are_refused():
    for wrong, message in (
        ({"dims": (16, 24, 32)}, "must be four multiples of 8"),
        ({"dims": (16, 24, 32, 60)}, "must be four multiples of 8"),
        ({"depths": (1, 2, 2, -1)}, "must be four numbers >= 0"),
        ({"num_heads": 5}, "not a multiple of num_heads=5"),
        ({"num_heads": 0}, "not a multiple of num_heads=0"),
        ({"resolution": 0}, "resolution=0"),
        ({"bias_resize": "bilinear"}, "bias_resize='bilinear' is unknown"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            LSNet(**{**TINY, **wrong})


def test_checkpointing_of_activations_changes_no_gradient():
    x = torch.randn(2, 3, 128, 64)
    gradients = []
    for use in (False, True):
        model = random_norms(tiny(use_act_checkpoint=use)).train()
        sum(out.square().mean() for out in model(x).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_stochastic_depth_acts_in_training_alone():
    model = random_norms(tiny(drop_path_rate=0.9))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = [model.train()(x)["c6"] for _ in range(4)]
        assert any(not torch.equal(maps[0], other) for other in maps[1:])
        assert torch.equal(model.eval()(x)["c6"], model(x)["c6"])


def test_weights_are_shared_by_every_jth_channel():
    block = LSConv(32).eval()
    x = torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        before = block(x)
        block.lkp.norm.bias[9:18] += 1.0  # the taps of weight channel 1 of 4
        changed = (block(x) != before).flatten(2).any(2)[0]
    assert changed.nonzero().flatten().tolist() == list(range(1, 32, 4))


def test_large_features_fit_into_float16_with_norms_and_full_precision():
    """Activations of LSNet-B reach ten millions with weights of unit scale; float16 ends at 65504."""
    large = {"dims": VARIANTS["b"]["dims"], "depths": (4, 6, 6, 2), "resolution": 1}
    plain = LSNet(**large)
    weights = reference.lsnet_weights({k: list(v.shape) for k, v in plain.state_dict().items()}, "base")
    plain.load_state_dict(weights)
    remedied = LSNet(**large, out_norm=True, full_precision=True)
    remedied.load_state_dict(weights, strict=False)
    x = reference.normal(0, [1, 3, 64, 64])
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert not plain.eval()(x)["c6"].isfinite().all()
        for out in remedied.eval()(x).values():
            assert out.half().isfinite().all()
            assert out.abs().max() < 100
    assert {n.split(".")[0] for n in remedied.state_dict().keys() - weights.keys()} == {"out_norms"}


def test_compiles_as_one_graph():
    model = random_norms(LSNet((8, 8, 16, 16), (0, 0, 2, 2))).eval()  # one block of each kind
    x = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        want, got = model(x), torch.compile(model, backend="eager", fullgraph=True)(x)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


@pytest.mark.parametrize("make", [LSNet, partial(LSNetClassifier, num_classes=5)], ids=["backbone", "classifier"])
def test_exports_for_batches_of_any_size(make):
    model = random_norms(make((8, 8, 16, 16), (0, 0, 2, 2))).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 150),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 3, 100, 150)
    torch.testing.assert_close(program.module()(x), model(x))


# The classifier


def test_timm_knows_the_names_without_being_imported():
    code = (
        "import sys, piip; assert 'timm' not in sys.modules and 'torch' not in sys.modules; import timm;"
        "print(*timm.list_models('lsnet*', pretrained=True)); print('detectron2' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == ["lsnet_b", "lsnet_b_distill", "lsnet_s", "lsnet_s_distill", "lsnet_t", "lsnet_t_distill", "False"]


def test_settings_of_evaluation_are_the_published_ones():
    for name in ("lsnet_t", "lsnet_s_distill", "lsnet_b"):
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.url == f"https://huggingface.co/jameslahm/lsnet/resolve/main/{name}.pth"
        assert (cfg.crop_pct, cfg.interpolation, cfg.input_size) == (0.875, "bicubic", (3, 224, 224))
        assert np.allclose([*cfg.mean, *cfg.std], [0.485, 0.456, 0.406, 0.229, 0.224, 0.225])


def test_two_heads_speak_apart_in_training_and_together_after():
    model = timm.create_model("lsnet_t_distill", num_classes=7).eval()
    assert timm.create_model("lsnet_t", distillation=True).pretrained_cfg["url"].endswith("lsnet_t_distill.pth")
    nn.init.normal_(model.head_dist.l.weight)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(model(x), (model.head(features) + model.head_dist(features)) / 2)
    one, other = model.train()(x)
    assert one.shape == other.shape == (2, 7)
    assert not torch.equal(one, other)
    model.set_distilled_training(False)
    assert model(x).shape == (2, 7)
    assert model.get_classifier() == (model.head, model.head_dist)


def test_heads_can_be_exchanged():
    model = timm.create_model("lsnet_t", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    assert model(x).shape == (1, 3)
    assert model.get_classifier() is model.head
    model.reset_classifier(11)
    assert model(x).shape == (1, 11)
    assert model.num_classes == 11
    model.reset_classifier(0)
    assert model(x).shape == (1, 384)
    model.reset_classifier(7, "catavgmax")
    assert model(x).shape == (1, 7)
    bare = timm.create_model("lsnet_t", num_classes=0, global_pool="").eval()
    assert bare(x).shape == (1, 384, 1, 1)
    fused = fuse(bare)
    fused.reset_classifier(9, "avg")
    assert fused(x).shape == (1, 9)
    with pytest.raises(ConfigError, match="num_classes=5 needs a global_pool"):
        LSNetClassifier(**TINY, num_classes=5, global_pool="")


def test_images_and_grids_of_other_sizes_can_be_classified():
    model = random_norms(LSNetClassifier(**TINY, img_size=224, num_classes=5)).eval()
    assert model.blocks4[3].mixer.m.attention_biases.shape == (4, 16)
    for size in ((224, 224), (256, 193), (128, 512), (65, 40)):
        assert model(torch.randn(1, 3, *size)).shape == (1, 5)
    assert LSNetClassifier(**TINY, img_size=384).blocks4[3].mixer.m.attention_biases.shape == (4, 36)
    with pytest.raises(ConfigError, match=r"img_size=\(224, 256\) must be the side of a square"):
        LSNetClassifier(**TINY, img_size=(224, 256))


def test_features_alone_are_those_of_the_stages():
    model = timm.create_model("lsnet_t", features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.channels() == [64, 256]
    assert model.feature_info.reduction() == [8, 32]
    assert [f.shape[1:] for f in model(torch.randn(1, 3, 64, 96))] == [(64, 8, 12), (256, 2, 3)]
    assert not hasattr(model.model, "blocks4")


def test_weight_decay_spares_the_biases_of_attention():
    model = LSNetClassifier(**TINY)
    assert model.no_weight_decay() == {"blocks4.3.mixer.m.attention_biases"}
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05, layer_decay=0.9)
    spared = {p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert model.blocks4[3].mixer.m.attention_biases in spared
    assert model.head.l.weight not in spared


def test_pretrained_files_in_any_container_are_fitted(tmp_path):
    source = random_norms(timm.create_model("lsnet_t", num_classes=4)).eval()
    indices = {"blocks4.3.mixer.m.attention_bias_idxs": torch.zeros(16, 16, dtype=torch.long)}
    file = tmp_path / "lsnet_t.pth"
    torch.save({"model": {**source.state_dict(), **indices}}, file)
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "num_classes": 4}}
    x = torch.randn(1, 3, 224, 224)
    same = timm.create_model("lsnet_t", num_classes=4, **options).eval()
    torch.testing.assert_close(same(x), source(x))
    torch.save({k: v for k, v in source.state_dict().items() if ".mixer.conv1." not in k}, file)  # as of LSNet-B
    lacking = timm.create_model("lsnet_t", num_classes=4, **options)
    assert not lacking.blocks2[2].mixer.conv1(torch.randn(2, 128, 3, 3)).any()
    other = timm.create_model("lsnet_t", num_classes=9, img_size=384, **options)
    assert other.head.l.weight.shape == (9, 384)
    table = resize_bias_table(source.blocks4[3].mixer.m.attention_biases, 36)
    torch.testing.assert_close(other.blocks4[3].mixer.m.attention_biases, table)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lsnet_s", "choose lsnet_t, lsnet_s or lsnet_b"),
        ("lsnet_t_distill", "have head, and the model has head and"),
    ],
)
def test_pretrained_files_of_another_size_or_mode_are_refused(tmp_path, name, message):
    file = tmp_path / "lsnet_t.pth"
    torch.save(timm.create_model("lsnet_t", num_classes=4).state_dict(), file)
    overlay = {"file": str(file), "num_classes": 4}
    with pytest.raises(CheckpointError, match=message):
        timm.create_model(name, num_classes=4, pretrained=True, pretrained_cfg_overlay=overlay)
    assert timm.create_model("lsnet_t", features_only=True, pretrained=True, pretrained_cfg_overlay=overlay)


def test_depthwise_1x1_convolutions_are_products_of_the_same_numbers() -> None:
    torch.manual_seed(0)
    conv = RepDW(16).conv1.c
    x = torch.randn(2, 16, 5, 7, requires_grad=True)
    want = F.conv2d(x, conv.weight, groups=16)
    torch.testing.assert_close(conv(x), want)
    inputs, grad = (x, conv.weight), torch.randn_like(want)
    for given, right in zip(
        torch.autograd.grad(conv(x), inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True
    ):
        torch.testing.assert_close(given, right)
    assert conv(x.bfloat16()).dtype == torch.bfloat16
    conv.bias = nn.Parameter(torch.ones(16))  # as folding a norm leaves it
    torch.testing.assert_close(conv(x), want + 1)
