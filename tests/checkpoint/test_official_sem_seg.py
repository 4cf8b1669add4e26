"""Whole segmentors in the released layout: there and back, and what belongs to a bare backbone."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from piip.checkpoint import build_from_official, load_official, load_weights, to_official
from piip.engine.config import load_config
from piip.errors import CheckpointError
from piip.modeling import PIIP
from piip.modeling.meta_arch import SemanticSegmentor


def tiny() -> DictConfig:
    """The published PIIP-H6B at 512/256, with another size."""
    model = load_config("ADE20K-SemanticSegmentation/upernet_piip_h6b_512_256_80k.py").model
    for branch, width in zip(model.backbone.branches, (32, 64), strict=True):
        branch.update(embed_dim=width, depth=2, num_heads=2, drop_path_rate=0.0, weights=None)
    model.backbone.update(interaction_indexes=2, resolutions=[64, 32])
    model.backbone.interaction.num_heads = 4
    model.sem_seg_head.update(num_classes=5, channels=16, auxiliary_channels=8)
    for shape in model.sem_seg_head.input_shape.values():
        shape.channels = 64
    model.update(train_size=64, window_size=64, window_stride=43)
    return model


def build(seed: int) -> SemanticSegmentor:
    torch.manual_seed(seed)
    model = instantiate(tiny()).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.02 * torch.randn_like(tensor).abs())
    return model


@pytest.fixture(scope="module")
def model() -> SemanticSegmentor:
    return build(0)


def segment(model: SemanticSegmentor) -> torch.Tensor:
    image = torch.arange(3 * 48 * 100, dtype=torch.float32).reshape(3, 48, 100) % 251
    with torch.no_grad():
        return model([{"image": image}])[0]["sem_seg"]


def test_there_and_back(model: SemanticSegmentor) -> None:
    released = to_official(model)
    parts = {name.split(".")[0] for name in released}
    assert parts == {"backbone", "decode_head", "auxiliary_head"}
    assert len(released) == len(model.state_dict())
    assert released["backbone.branch2.pos_embed"].shape == (1, 4 * 4 + 1, 32)
    assert released["decode_head.bottleneck.conv.weight"].shape == (16, 64 + 4 * 16, 3, 3)
    other = build(1)
    assert not torch.equal(segment(other), segment(model))
    assert load_official(other, {"state_dict": released}).complete
    assert torch.equal(segment(other), segment(model))


def test_a_file_of_the_released_kind(model: SemanticSegmentor, tmp_path) -> None:
    path = tmp_path / "segmentor.pth"
    torch.save(
        {
            "meta": {},
            "state_dict": {k: v.bfloat16() if v.is_floating_point() else v for k, v in to_official(model).items()},
        },
        path,
    )
    other = build(1)
    report = load_weights(other, str(path))
    assert report.complete
    assert torch.allclose(segment(other), segment(model), rtol=0.05, atol=0.2)


def test_the_backbone_alone_on_either_side(model: SemanticSegmentor) -> None:
    released, other = to_official(model), build(1)
    report = load_official(other.backbone, released)
    assert report.complete
    assert {name.split(".")[0] for name in report.ignored} == {"decode_head", "auxiliary_head"}
    assert isinstance(other.backbone, PIIP)
    whole = build(2)
    report = load_official(whole, to_official(model.backbone), strict=False)
    assert {name.split(".")[0] for name in report.missing} == {"sem_seg_head"}
    assert torch.equal(whole.backbone.branches[0].pos_embed, model.backbone.branches[0].pos_embed)


def test_the_released_class_builds_the_backbone(model: SemanticSegmentor) -> None:
    """Its position embeddings have the size of the windows; MLPs are fused, which means the other GELU."""
    common = {
        "depth": 2, "num_heads": 2, "mlp_ratio": 4, "patch_size": 16, "pretrain_img_size": 224, "mlp_type": "fused_mlp",
        "interaction_indexes": [[0, 0], [1, 1]], "drop_path_rate": 0.0, "pretrained": "./pretrained/x.pth",
    }  # fmt: skip
    vit = {"qkv_bias": True, "norm_layer_type": "LayerNorm", "init_values": 1.0, "qk_normalization": False}
    args = {
        "n_points": 4, "deform_num_heads": 4, "cffn_ratio": 0.25, "deform_ratio": 0.5, "with_cffn": True,
        "interact_attn_type": "deform", "interaction_proj": False, "norm_layer": "none",
        "branch1": {**common, "img_size": 32, "embed_dim": 64, "init_values": 0.1, "qkv_bias": False},
        "branch2": {**common, **vit, "img_size": 64, "embed_dim": 32},
    }  # fmt: skip
    built = build_from_official("mmsegmentation/mmseg/models/backbones/piip_2branch.py PIIPTwoBranch", args).eval()
    assert load_official(built, to_official(model.backbone)).complete
    image = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64).sin()
    with torch.no_grad():
        for ours, released in zip(model.backbone(image).values(), built(image).values(), strict=True):
            torch.testing.assert_close(ours, released, rtol=0, atol=1e-6)


def test_another_number_of_classes_is_told(model: SemanticSegmentor) -> None:
    node = tiny()
    node.sem_seg_head.num_classes = 7
    with pytest.raises(CheckpointError, match=r"2 mismatched|predictor"):
        load_official(instantiate(node), to_official(model))
