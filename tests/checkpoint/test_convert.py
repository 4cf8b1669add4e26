"""Our names to the released layout and back, for every kind of model; writing weights."""

from __future__ import annotations

import os

import pytest
import torch
from detectron2.config import instantiate
from safetensors import safe_open
from safetensors.torch import load_file

from piip import model_zoo
from piip.checkpoint import build_from_official, load_official, load_weights, to_official
from piip.checkpoint.convert import released_extras, write_weights
from piip.checkpoint.official import official_names
from piip.errors import CheckpointError, ConfigError
from piip.modeling import (
    PIIP,
    BEiTBranch,
    ConvNeXtBranch,
    InternViTBranch,
    SingleBranch,
    TimmBranch,
    UniPerceiverBranch,
    ViTBranch,
)
from piip.modeling.without_weights import on_meta
from tests import reference

STAGES = [[0, 0], [1, 2], [3, 4], [5, 6]]


def vit(width=32, depth=2):
    return ViTBranch(width, depth, width // 16, pretrain_img_size=64)


def rms(width):
    return InternViTBranch(width, 2, 2, norm="RMS", qk_norm=True, qkv_bias=False, pretrain_img_size=64)


def convnext(first):
    return ConvNeXtBranch((1, 1, 1, 1), [first * k for k in (1, 2, 3, 4)])


def pyramid(*branches, **kwargs):
    kwargs = {"interaction_indexes": 2, "interaction": {"num_heads": 4}, **kwargs}
    return PIIP(branches, [256, 192, 128, 64][: len(branches)], **kwargs)


def by_stages(*branches):
    groups = [STAGES if isinstance(b, ConvNeXtBranch) else [[k, k] for k in range(4)] for b in branches]
    return pyramid(*branches, interaction_indexes=groups, out_interaction_indexes=[0, 1, 2])


MODELS = {
    "1 branch": lambda: pyramid(vit()),
    "2 branches": lambda: pyramid(vit(32), vit(64)),
    "3 branches": lambda: pyramid(vit(32), vit(64), vit(96)),
    "4 branches": lambda: pyramid(vit(32), vit(48), vit(64), vit(96)),
    "DINO, 2 branches": lambda: pyramid(vit(32), vit(64), out_features=["c3", "c4", "c5"]),
    "DINO, 3 branches": lambda: pyramid(vit(32), vit(64), vit(96), out_features=["c3", "c4", "c5"]),
    "dense": lambda: pyramid(vit(32), vit(64), interaction={"attention": "dense", "num_heads": 4}),
    "bare": lambda: pyramid(vit(), vit(), interaction={"with_proj": False, "with_norm": False, "ffn_ratio": 0}),
    "InternViT": lambda: pyramid(InternViTBranch(32, 2, 2), rms(64)),
    "BEiT": lambda: pyramid(vit(32), BEiTBranch(64, 2, 2, window_size=[3, 0], pretrain_img_size=64)),
    "Uni-Perceiver": lambda: pyramid(vit(32), UniPerceiverBranch(64, 2, 2)),
    "ConvNeXt": lambda: by_stages(convnext(16), convnext(32)),
    "hybrid": lambda: by_stages(convnext(16), vit(64, depth=4), convnext(32)),
    "timm": lambda: pyramid(vit(32), TimmBranch("test_vit", weights=None)),
    "single": lambda: SingleBranch(vit()),
    "single, RMS": lambda: SingleBranch(rms(32)),
    "single ConvNeXt": lambda: SingleBranch(convnext(16)),
    "Mask R-CNN": lambda: instantiate(model_zoo.get_config("quickstart/mask_rcnn_piip_digits").model),
    "DINO": lambda: instantiate(model_zoo.get_config("quickstart/dino_piip_digits").model),
    "Cascade Mask R-CNN": lambda: instantiate(_small_cascade()),
}
EXTRAS = {
    "DINO, 3 branches": 6, "BEiT": 2, "ConvNeXt": 4, "hybrid": 4, "single ConvNeXt": 2, "Mask R-CNN": 6, "DINO": 6,
    "Cascade Mask R-CNN": 6,
}  # fmt: skip


def _small_cascade():
    model = model_zoo.get_config("quickstart/mask_rcnn_piip_digits").model
    heads = model_zoo.get_config(
        "COCO-InstanceSegmentation/cascade_mask_rcnn_piip_tsb_1568_1120_672_1x"
    ).model.roi_heads
    model.roi_heads = heads
    return model


def randomise(model):
    """No two models that are made are equal, nor is any tensor left as it starts."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", MODELS)
def test_ours_to_released_and_back_bit_for_bit(kind):
    source, fresh = randomise(MODELS[kind]()), randomise(MODELS[kind]())
    released = to_official(source)
    extras = released_extras(source)
    assert len(extras) == EXTRAS.get(kind, 0)
    assert len(released) == len(official_names(source)) + len(extras)
    report = load_official(fresh, released)
    assert report.complete
    assert sorted(report.ignored) == sorted(extras)
    # Only what is made anew by every model has no released name.
    assert not set(source.state_dict()) - set(official_names(source)) - {n for n, _ in source.named_buffers()}
    parameters = dict(fresh.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in source.named_parameters())


@pytest.mark.parametrize(
    "name",
    ["tiny_3branch", "tiny_3branch_dino", "twobranch_deit", "convnext_tsb_1024_672_448_in256x384", "beit_sbl_reduced"],
)
def test_the_layout_is_the_released_one(name):
    """Names, shapes, and integers to the last entry are those of the released classes."""
    case = reference.case(f"piip/{name}")
    with on_meta():
        model = build_from_official(case["class"], case["args"])
    state = {ours: torch.zeros(t.shape) for ours, t in model.state_dict().items()}
    released = to_official(model, state)
    assert {key: list(tensor.shape) for key, tensor in released.items()} == {k: s for k, s, _ in case["state_dict"]}


def test_neutral_values_do_nothing_and_have_the_type_of_the_rest():
    model = pyramid(vit(32), vit(64), vit(96), out_features=["c4"]).bfloat16()
    released = to_official(model)
    assert released["fpn1.0.weight"].dtype == torch.bfloat16
    assert not released["fpn1.3.weight"].any()
    norm = to_official(SingleBranch(convnext(16)))
    assert norm["convnext_model.layernorm.weight"].unique().tolist() == [1]
    assert norm["convnext_model.layernorm.bias"].unique().tolist() == [0]


def test_weights_of_another_model_are_refused():
    model = pyramid(vit(32), vit(64))
    state = pyramid(vit(32), vit(64), vit(96)).state_dict()
    with pytest.raises(CheckpointError, match=r"tensors are not in the model \(branches\.2\.pos_embed first\)"):
        to_official(model, state)
    with pytest.raises(TypeError, match="no backbone that has released checkpoints"):
        to_official(torch.nn.Linear(2, 2))


def test_renaming_copies_nothing():
    model = pyramid(vit(32))
    released = to_official(model)
    own = model.state_dict()
    assert all(released[theirs].data_ptr() == own[ours].data_ptr() for ours, theirs in official_names(model).items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_written_weights_load(tmp_path, suffix, dtype):
    source, target = pyramid(vit(32), vit(64)), pyramid(vit(32), vit(64))
    path = tmp_path / f"weights{suffix}"
    write_weights(path, source.state_dict(), dtype, {"format": "piip"})
    assert os.listdir(tmp_path) == [path.name]
    assert load_weights(target, str(path)).complete
    if dtype == "bfloat16":
        source.bfloat16().float()
        assert path.stat().st_size < 2.2 * sum(p.numel() for p in source.parameters()) + 200_000
    assert equal(source, target)


def test_safetensors_hold_views_shared_memory_and_what_they_are(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_weights(
        tmp_path / "w.safetensors",
        {"rows": whole[1:], "turned": whole.t(), "whole": whole, "again": whole, "count": torch.tensor(3)},
        "float16",
        {"config": "mine.py"},
    )
    got = load_file(tmp_path / "w.safetensors")
    assert torch.equal(got["turned"], whole.t().half())
    assert got["rows"].tolist() == whole[1:].tolist()
    assert torch.equal(got["again"], got["whole"])
    assert got["count"].dtype == torch.int64
    with safe_open(tmp_path / "w.safetensors", "pt") as f:
        assert f.metadata() == {"config": "mine.py"}


@pytest.mark.parametrize(
    ("path", "dtype", "message"),
    [
        ("weights.bin", "keep", r"must end in \.safetensors or \.pth"),
        ("nowhere/weights.pth", "keep", "there is no folder '.*nowhere'"),
        ("weights.pth", "int8", "dtype='int8' is unknown; use one of keep, float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, path, dtype, message):
    with pytest.raises(ConfigError, match=message):
        write_weights(tmp_path / path, {"w": torch.ones(1)}, dtype)
    assert os.listdir(tmp_path) == []
