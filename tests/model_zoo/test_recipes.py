"""The recipes of the published models: images, normalisation, padding, settings, learning rates per layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from piip.model_zoo.zoo import get_config, published
from piip.modeling.branches import Branch, ConvNeXtBranch
from piip.optim import layer_decay_groups
from tests.model_zoo.models import on_meta, packaged

HALF = ([127.5] * 3, [127.5] * 3)
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
SEGMENTATION, DETECTION = "COCO-InstanceSegmentation", "COCO-Detection"


def path(name: str) -> str:
    folders = {"dino": DETECTION, "retinanet": DETECTION, "semantic": "ADE20K-SemanticSegmentation"}
    return f"{folders.get(name.partition('_')[0], SEGMENTATION)}/{name}.py"


def config(name: str) -> DictConfig:
    return packaged(path(name))


# Long and short edge of training and test, padding, mean and std, learning rate and its decay per layer, batch size.
PLAIN = {
    **{
        f"mask_rcnn_piip_{sizes}_1x": (int(sizes.split("_")[1]), short, 224, HALF, 1e-4, 0.85, 16)
        for sizes, short in {
            "tsb_1120_896_448": 672,
            "tsb_1568_896_448": 941,
            "tsb_1568_1120_672": 941,
            "sbl_1120_672_448": 672,
            "sbl_1344_896_448": 806,
            "sbl_1568_896_672": 941,
            "sbl_1568_1120_672": 941,
            **{f"sbl_1568_1120_672_{v}": 941 for v in ("augreg", "augreg_speedup", "mae", "dinov2")},
            **{f"sbl_1568_1120_672_{v}": 941 for v in ("beitv2", "uniperceiver")},
            "tsbl_1344_896_672_448": 806,
            "tsbl_1568_1120_672_448": 941,
            "tsbl_1792_1568_1120_448": 1075,
        }.items()
    },
    "cascade_mask_rcnn_piip_tsb_1568_1120_672_1x": (1568, 941, 224, HALF, 1e-4, 0.85, 16),
    "cascade_mask_rcnn_piip_sbl_1568_1120_672_1x": (1568, 941, 224, HALF, 1e-4, 0.85, 16),
    **{
        f"mask_rcnn_piip_{sizes}_1024_672_448_1x": (1024, 614, 32, IMAGENET, 2e-4, 0.8, 16)
        for sizes in ("ct_vs_vb", "ct_cs_vb", "ct_vs_cb", "vt_cs_vb", "vt_cs_cb", "vt_vs_cb")
    },
    "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x": (1333, 800, 32, IMAGENET, 2e-4, 0.8, 16),
    **{
        f"mask_rcnn_piip_lsnet_{sizes}_1x": (long, short, 224, IMAGENET, 1e-4, 0.85, 16)
        for sizes, long, short in (
            ("t_vit_s_b_1120_896_448", 1120, 672),
            ("t_vit_s_b_1568_1120_672", 1568, 941),
            ("t_s_b_1120_896_448", 1120, 672),
        )
    },
    "mask_rcnn_vit_b_1024_1x": (1024, 614, 64, HALF, 1e-4, 0.95, 16),
    "mask_rcnn_vit_l_1024_1x": (1024, 614, 64, HALF, 1e-4, 0.95, 16),
    "mask_rcnn_convnext_b_1024_1x": (1024, 614, 64, IMAGENET, 1e-4, 1.0, 16),
}
# Factor and last crop of multi-scale training, long and short edge of the test, then as above.
MULTI_SCALE = {
    "mask_rcnn_internvit_6b_1024_1x": (1.0, 1024, 1333, 800, 64, HALF, 1e-4, 0.95, 16),
    "mask_rcnn_piip_h6b_1024_512_1x": (1.0, 1024, 1333, 800, 64, HALF, 1e-4, 0.85, 16),
    "mask_rcnn_piip_h6b_1024_512_speedup_1x": (1.0, 1024, 1333, 800, 64, HALF, 1e-4, 0.85, 16),
    "mask_rcnn_piip_lh6b_1536_1024_512_1x": (1.5, 1536, 1999, 1200, 64, HALF, 2e-4, 0.85, 32),
    "dino_4scale_piip_h6b_1024_768_1x": (1.0, 1024, 1333, 800, 64, HALF, 2e-4, 0.85, 32),
    "dino_4scale_piip_lh6b_1536_1024_512_2x": (1.5, 1536, 1999, 1200, 64, HALF, 2e-4, 0.85, 32),
    "dino_4scale_piip_sbl_1792_1120_672_3x": (1.75, 1792, 2332, 1400, 224, IMAGENET, 2e-4, 0.85, 32),
}
LSNETS = [f"{detector}_lsnet_{size}_1x" for detector in ("retinanet", "mask_rcnn") for size in "tsb"]
JITTERED = {
    f"mask_rcnn_piip_{sizes}_lsj_100ep": (1120, 224, HALF, 1e-4, 0.85, 64)
    for sizes in ("tsb_1120_896_448", "sbl_1120_672_448")
}


def test_every_config_has_its_recipe() -> None:
    names = [*PLAIN, *MULTI_SCALE, *JITTERED, *LSNETS]
    detectors = [c for c in published() if c.startswith((f"{DETECTION}/", f"{SEGMENTATION}/"))]
    assert sorted(names) == sorted(c.rpartition("/")[2].removesuffix(".py") for c in detectors)


def check_rest(cfg: DictConfig, divisor: int, stats: tuple, lr: float, decay: float, batch: int) -> None:
    assert cfg.model.backbone.bottom_up.size_divisibility == divisor
    assert (list(cfg.model.pixel_mean), list(cfg.model.pixel_std)) == stats
    assert cfg.model.input_format == cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.dataloader.test.mapper.image_format == "RGB"
    assert (cfg.optimizer.lr, cfg.optimizer.params.lr_decay_rate) == (lr, decay)
    assert cfg.optimizer.weight_decay == (0.1 if batch == 64 else 0.05)
    assert list(cfg.optimizer.betas) == [0.9, 0.999]
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == cfg.train.epochs * math.ceil(117266 / batch)
    assert not cfg.train.clip_grad.enabled
    assert not cfg.train.ema.enabled


def augmentations(cfg: DictConfig) -> list[Any]:
    return [instantiate(a) for a in cfg.dataloader.train.mapper.augmentations]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_recipe(name: str) -> None:
    long_edge, short_edge, *rest = PLAIN[name]
    cfg = config(name)
    resize, flip = augmentations(cfg)
    (test,) = (instantiate(a) for a in cfg.dataloader.test.mapper.augmentations)
    for found in (resize, test):
        assert (found.max_size, set(found.short_edge_length)) == (long_edge, {short_edge})
    assert (flip.prob, flip.horizontal) == (0.5, True)
    check_rest(cfg, *rest)


@pytest.mark.parametrize("name", MULTI_SCALE)
def test_multi_scale_recipe(name: str) -> None:
    factor, crop, long_edge, short_edge, *rest = MULTI_SCALE[name]
    cfg = config(name)
    flip, multi_scale = augmentations(cfg)
    assert (flip.prob, flip.horizontal) == (0.5, True)
    maybe, resize, cut = multi_scale.augs
    assert (maybe.prob, resize.max_size, cut.crop_size) == (0.5, long_edge, (crop, crop))
    assert list(resize.short_edge_length) == [int(edge * factor) for edge in range(480, 801, 32)]
    (test,) = (instantiate(a) for a in cfg.dataloader.test.mapper.augmentations)
    assert (test.max_size, set(test.short_edge_length)) == (long_edge, {short_edge})
    assert cfg.dataloader.train.mapper.use_instance_mask == name.startswith("mask_rcnn")
    check_rest(cfg, *rest)


@pytest.mark.parametrize("name", LSNETS)
def test_lsnet_recipe(name: str) -> None:
    cfg = get_config(path(name))
    resize, flip = augmentations(cfg)
    (test,) = (instantiate(a) for a in cfg.dataloader.test.mapper.augmentations)
    for found in (resize, test):
        assert (found.max_size, set(found.short_edge_length)) == (1333, {800})
    assert (flip.prob, flip.horizontal) == (0.5, True)
    assert (list(cfg.model.pixel_mean), list(cfg.model.pixel_std)) == IMAGENET
    assert cfg.model.input_format == cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.dataloader.train.mapper.use_instance_mask == name.startswith("mask_rcnn")
    assert cfg.train.init_checkpoint == f"lsnet://lsnet_{name.split('_lsnet_')[1][0]}.pth"
    assert (cfg.dataloader.train.total_batch_size, cfg.train.max_iter) == (16, 12 * 7330)
    assert (cfg.train.clip_grad.enabled, cfg.train.ema.enabled, cfg.train.amp.enabled) == (False, False, False)
    warmup = cfg.lr_multiplier
    assert (warmup.warmup_factor, round(warmup.warmup_length * cfg.train.max_iter)) == (0.001, 500)
    assert list(warmup.scheduler.milestones) == [8, 11]

    model = on_meta(path(name))
    assert model.backbone.size_divisibility == 32
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():  # norms and biases, too
        assert decay[id(parameter)] == (0.0 if key.endswith("attention_biases") else 0.05), key
    assert {(g["lr"], g["betas"]) for g in optimizer.param_groups} == {(1e-4, (0.9, 0.999))}


# Parameters of the released detectors and segmentors, for the sizes T, S and B.
LSNET_TOTALS = {
    "retinanet_lsnet_{}_1x": (20_950_212, 25_827_356, 33_135_332),
    "mask_rcnn_lsnet_{}_1x": (31_998_400, 36_728_088, 43_888_608),
    "semantic_fpn_lsnet_{}_40k": (15_245_158, 19_974_846, 27_135_366),
}


@pytest.mark.parametrize("name", LSNET_TOTALS)
def test_lsnet_models_have_the_released_number_of_parameters(name: str) -> None:
    models = [on_meta(path(name.format(size))) for size in "tsb"]
    assert tuple(sum(p.numel() for p in model.parameters()) for model in models) == LSNET_TOTALS[name]


@pytest.mark.parametrize("name", JITTERED)
def test_jittered_recipe(name: str) -> None:
    size, *rest = JITTERED[name]
    cfg = config(name)
    flip, jitter = augmentations(cfg)
    assert flip.prob == 0.5
    scale, crop = jitter.augs
    assert (scale.min_scale, scale.max_scale, scale.target_height, crop.crop_size) == (0.1, 2.0, size, (size, size))
    (test,) = (instantiate(a) for a in cfg.dataloader.test.mapper.augmentations)
    assert (test.max_size, set(test.short_edge_length)) == (size, {size})
    assert cfg.dataloader.train.mapper.recompute_boxes
    check_rest(cfg, *rest)


@pytest.mark.parametrize(
    ("name", "branches", "interaction"),
    [
        ("mask_rcnn_piip_sbl_1568_1120_672_mae_1x", [("gelu", 28)] * 3, (True, True, 12)),
        ("mask_rcnn_piip_sbl_1568_1120_672_beitv2_1x", [("gelu", 28)] * 3, (True, True, 12)),
        ("mask_rcnn_piip_sbl_1568_1120_672_augreg_speedup_1x", [("gelu_tanh", 28)] * 3, (False, False, 12)),
        ("mask_rcnn_piip_tsb_1120_896_448_lsj_100ep", [("gelu", 14)] * 3, (True, True, 12)),
        ("mask_rcnn_piip_h6b_1024_512_speedup_1x", [("gelu_tanh", 0)] * 2, (False, False, 12)),
        ("mask_rcnn_piip_lh6b_1536_1024_512_1x", [("gelu_tanh", 0)] * 3, (False, False, 4)),
        ("dino_4scale_piip_lh6b_1536_1024_512_2x", [("gelu_tanh", 0)] * 3, (False, False, 4)),
        ("dino_4scale_piip_h6b_1024_768_1x", [("gelu", 0)] * 2, (True, True, 12)),
        (
            "dino_4scale_piip_sbl_1792_1120_672_3x",
            [("gelu", [24, 24, 0] * n) for n in (4, 4, 8)],
            (True, True, 12),
        ),
    ],
)
def test_what_tells_the_variants_apart(name: str, branches: list[tuple], interaction: tuple) -> None:
    piip = config(name).model.backbone.bottom_up
    # Configs leave out what is the branch's default.
    assert [(b.get("activation", "gelu"), b.get("window_size", 0)) for b in piip.branches] == branches
    found = piip.interaction
    assert (found.with_proj, found.with_norm, piip.interaction_indexes) == interaction
    assert (found.attention, found.num_heads, found.num_points) == ("deform", 16, 4)
    assert (found.value_ratio, found.ffn_ratio, found.drop_path_rate) == (0.5, 0.25, 0.4)


def test_cascade_trains_on_crops_without_objects_and_detects() -> None:
    """The whole detector of the config on a small body."""
    cfg = get_config(path("cascade_mask_rcnn_piip_tsb_1568_1120_672_1x")).model
    for branch in cfg.backbone.bottom_up.branches:
        branch.update(embed_dim=64, depth=1, num_heads=2)
    cfg.backbone.bottom_up.interaction_indexes = 1
    cfg.proposal_generator.post_nms_topk = [50, 20]
    torch.manual_seed(0)
    model = instantiate(cfg)
    samples = []
    for count in (2, 0):
        corners = torch.tensor([[10.0, 20, 90, 100]] * count).reshape(-1, 4)
        polygons = PolygonMasks([[[10, 20, 90, 20, 90, 100]]] * count)
        objects = {"gt_boxes": Boxes(corners), "gt_classes": torch.full((count,), 3), "gt_masks": polygons}
        image = torch.randint(0, 256, (3, 150, 220)).float()
        samples.append({"image": image, "instances": Instances((150, 220), **objects)})
    with EventStorage():
        losses = model(samples)
    assert sum("loss_cls" in loss for loss in losses) == 3
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.roi_heads.parameters() if p.grad is not None)
    with torch.no_grad():
        (found,) = model.eval()(samples[:1])
    assert found["instances"].image_size == (150, 220)


def test_groups_of_the_large_models() -> None:
    h6b = on_meta(path("mask_rcnn_piip_h6b_1024_512_1x")).backbone.bottom_up
    assert [last - first + 1 for first, last in h6b.groups[0]] == [2] * 4 + [3] * 8
    assert [last - first + 1 for first, last in h6b.groups[1]] == [4] * 12
    lh6b = on_meta(path("mask_rcnn_piip_lh6b_1536_1024_512_1x")).backbone.bottom_up
    assert [[last - first + 1 for first, last in groups] for groups in lh6b.groups] == [[6] * 4, [8] * 4, [12] * 4]
    assert all(branch.use_act_checkpoint for model in (h6b, lh6b) for branch in model.branches)


# Number of layers and strides of branches 2, 3, ... of the released recipes, which count from the largest model.
LAYERS = {
    "mask_rcnn_piip_tsb_1120_896_448_1x": (12, [1, 1]),
    "mask_rcnn_piip_sbl_1120_672_448_1x": (24, [2, 2]),
    "mask_rcnn_piip_sbl_1568_1120_672_dinov2_1x": (24, [2, 2]),
    "mask_rcnn_piip_sbl_1568_1120_672_beitv2_1x": (24, [2, 2]),
    "mask_rcnn_piip_sbl_1568_1120_672_uniperceiver_1x": (24, [2, 2]),
    "mask_rcnn_piip_tsbl_1344_896_672_448_1x": (24, [2, 2, 2]),
    "mask_rcnn_piip_h6b_1024_512_1x": (48, [1.5]),
    "mask_rcnn_piip_lh6b_1536_1024_512_1x": (48, [1.5, 2.0]),
    "dino_4scale_piip_sbl_1792_1120_672_3x": (24, [2, 2]),
    "dino_4scale_piip_h6b_1024_768_1x": (48, [1.5]),
    "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x": (12, [1, 3]),
    "mask_rcnn_piip_ct_vs_vb_1024_672_448_1x": (12, [1, 3]),
    "mask_rcnn_piip_ct_vs_cb_1024_672_448_1x": (12, [1, 3]),
    "mask_rcnn_piip_vt_cs_vb_1024_672_448_1x": (12, [1, 1]),
    "mask_rcnn_piip_vt_cs_cb_1024_672_448_1x": (12, [1, 1]),
    "mask_rcnn_piip_vt_vs_cb_1024_672_448_1x": (12, [1, 1]),
    "mask_rcnn_vit_b_1024_1x": (12, []),
    "mask_rcnn_internvit_6b_1024_1x": (48, []),
    "mask_rcnn_convnext_b_1024_1x": (0, []),
}


def released_number(branch: Branch, stride: float, name: str, last: int) -> int:
    """The layer number that the released recipe gives a parameter of a branch."""
    if isinstance(branch, ConvNeXtBranch):
        return last
    return math.floor((int(name.split(".")[1]) + 1) * stride) if name.startswith("blocks.") else 0


@pytest.mark.parametrize("name", LAYERS)
def test_learning_rates_are_those_of_the_released_recipe(name: str) -> None:
    cfg = config(name)
    model, rate = on_meta(path(name)), cfg.optimizer.params.lr_decay_rate
    depth, strides = LAYERS[name]
    last = depth + 1
    bottom_up = model.backbone.bottom_up
    branches: list[nn.Module] = list(bottom_up.branches)[::-1] if hasattr(bottom_up, "branches") else [bottom_up.branch]
    expected = {name: (1.0, p.dim() != 1 and not name.endswith(".bias")) for name, p in model.named_parameters()}
    paths = {module: key for key, module in model.named_modules()}
    for branch, stride in zip(branches, [1, *strides], strict=True):
        for inner, _ in branch.named_parameters():
            full = f"{paths[branch]}.{inner}"
            expected[full] = (rate ** (last - released_number(branch, stride, inner, last)), expected[full][1])
    groups = layer_decay_groups(model, cfg.optimizer.lr, 0.05, rate)
    found = {n: (group["lr_scale"], group["weight_decay"] > 0) for group in groups for n in group["names"]}
    assert found.keys() == expected.keys()
    for parameter, (scale, decayed) in expected.items():
        assert found[parameter] == (pytest.approx(scale), decayed), parameter
