"""The recipes of the published classifiers: images, mixing, optimizer, schedule, networks."""

from __future__ import annotations

import math

import pytest
from detectron2.config import instantiate
from omegaconf import DictConfig

from piip.checkpoint import build_from_official
from piip.engine.build import build_optimizer
from piip.model_zoo.zoo import get_config, published
from piip.modeling.without_weights import build_on_meta, on_meta
from tests.reference import case

FOLDER = "ImageNet-Classification"
LSNET = {"lsnet_t": 0.025, "lsnet_s": 0.025, "lsnet_b": 0.05}
# Branches' widths, depths and stochastic depth, highest resolution first.
TSB = [(192, 12, 0.05), (384, 12, 0.05), (768, 12, 0.2)]
SBL = [(384, 12, 0.05), (768, 12, 0.2), (1024, 24, 0.4)]
PIIP = {
    "piip_tsb_368_192_128": TSB,
    "piip_sbl_320_160_96_augreg": SBL,
    "piip_sbl_384_192_128_augreg": SBL,
}


def config(name: str) -> DictConfig:
    return get_config(f"{FOLDER}/{name}.py")


def rates(cfg: DictConfig, epochs: list[float]) -> list[float]:
    schedule = instantiate(cfg.lr_multiplier)
    return [cfg.optimizer.lr * schedule(epoch / cfg.train.epochs) for epoch in epochs]


def test_every_config_has_its_recipe() -> None:
    names = [*PIIP, *LSNET_CONFIGS]
    assert sorted(f"{FOLDER}/{name}.py" for name in names) == sorted(c for c in published() if c.startswith(FOLDER))


LSNET_CONFIGS = [f"{name}{kind}_300ep" for name in LSNET for kind in ("", "_distill")]


def check_common(cfg: DictConfig, size: int, crop: float, batch: int) -> None:
    train, test = (cfg.dataloader[part].mapper.transform for part in ("train", "test"))
    assert (train.size, train.interpolation, train.auto_augment) == (size, "bicubic", "rand-m9-mstd0.5-inc1")
    assert (test.size, test.interpolation, test.crop_pct) == (size, "bicubic", crop)
    assert dict(cfg.model.mixup) == {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5}
    assert cfg.model.label_smoothing == 0.1
    assert list(cfg.model.pixel_mean) == [123.675, 116.28, 103.53]
    assert list(cfg.model.pixel_std) == [58.395, 57.12, 57.375]
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == cfg.train.epochs * math.ceil(1281167 / batch)
    assert cfg.train.best_checkpointer.metric == "classification/top1"
    assert cfg.dataloader.evaluator.dataset_name == "imagenet_val"
    assert not cfg.train.ema.enabled


@pytest.mark.parametrize("name", LSNET_CONFIGS)
def test_lsnet(name: str) -> None:
    cfg, network = config(name), name.removesuffix("_300ep")
    check_common(cfg, 224, 0.875, 2048)
    assert cfg.train.epochs == 300
    assert cfg.dataloader.train.repeats == 3
    assert dict(cfg.model.erasing) == {"probability": 0.25, "mode": "pixel"}
    clip = cfg.train.clip_grad
    assert (clip.enabled, clip.adaptive, clip.max_norm) == (True, True, 0.02)
    assert rates(cfg, [0, 150, 300 - 1e-9]) == pytest.approx([1e-6, (4e-3 + 1e-5) / 2, 1e-5], rel=1e-3)
    assert rates(cfg, [5])[0] == pytest.approx(4e-3, rel=1e-3)
    assert cfg.model.network.model_name == network
    if network.endswith("distill"):
        assert cfg.model.teacher.name == "regnety_160.deit_in1k"
    else:
        assert cfg.model.teacher is None
    groups = build_optimizer(cfg, model := build_on_meta(cfg.model)).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    for name, parameter in model.named_parameters():
        spared = parameter.dim() == 1 or name.endswith((".bias", "attention_biases"))
        assert decay[name] == (0.0 if spared else LSNET[network.removesuffix("_distill")]), name
    assert {group["lr"] for group in groups} == {4e-3}


@pytest.mark.parametrize("name", PIIP)
def test_piip(name: str) -> None:
    cfg = config(name)
    resolutions = [int(word) for word in name.split("_") if word.isdigit()]
    check_common(cfg, resolutions[0], 1.0, 1024)
    assert cfg.train.epochs == 20
    assert cfg.dataloader.train.repeats == 1
    assert cfg.model.erasing is None
    assert not cfg.train.clip_grad.enabled
    assert (cfg.train.amp.enabled, cfg.train.amp.dtype) == (True, "float16")
    assert rates(cfg, [0, 10, 20 - 1e-9]) == pytest.approx([1e-6, 2e-5, 1e-5], rel=1e-3)
    model = build_on_meta(cfg.model)
    network = model.network
    assert network.resolutions == resolutions
    assert network.head_token == "first_patch"
    for branch, node, resolution, (width, depth, rate) in zip(
        network.branches, cfg.model.network.branches, resolutions, PIIP[name], strict=True
    ):
        assert (branch.out_channels[-1], branch.num_blocks) == (width, depth)
        assert branch.pos_embed.shape[1] == (resolution // 16) ** 2 + branch.leading_positions
        given = node.drop_path_rate
        assert (given if isinstance(given, float) else set(given)) in (rate, {rate})
    groups = build_optimizer(cfg, model).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}
    for group in groups:
        for parameter in group["names"]:
            assert group["lr"] == pytest.approx(3e-4 if ".interactions." in parameter else 3e-5)


def test_the_smallest_piip_is_the_released_one() -> None:
    reference = case("piip/cls_tsb_368_192_128")
    with on_meta():
        released = build_from_official(reference["class"], reference["args"])
    ours = build_on_meta(config("piip_tsb_368_192_128").model).network
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in released.state_dict().items()}
    assert ours.interaction_kwargs == released.interaction_kwargs
    assert ours.groups == released.groups
    assert [repr(b) for b in ours.branches] == [repr(b) for b in released.branches]
