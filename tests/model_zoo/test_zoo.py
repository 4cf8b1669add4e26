"""Configs and models by name; every packaged config loads, survives a save, instantiates and takes overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from piip import model_zoo
from piip.analysis import build_on_meta
from piip.engine.config import check_config, load_config
from piip.errors import ConfigError
from piip.model_zoo.zoo import published_row
from tests.model_zoo.models import on_meta, packaged

TSB = "COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x"
DIGITS = "quickstart/mask_rcnn_piip_digits"


def test_list_configs(project: Path) -> None:
    names = model_zoo.list_configs()
    assert names == sorted(names)
    assert {f"{TSB}.py", f"{DIGITS}.py"} <= set(names)
    assert all((project / "configs" / name).is_file() and not name.startswith("common/") for name in names)


def test_get_config_by_name_and_path(project: Path) -> None:
    by_name = model_zoo.get_config(f"{TSB}.py")
    assert by_name == model_zoo.get_config(TSB) == model_zoo.get_config(str(project / "configs" / f"{TSB}.py"))
    assert by_name == model_zoo.get_config("mask_rcnn_piip_tsb_1120_896_448_1x")
    assert by_name == model_zoo.get_config("mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16")  # as its authors call it
    assert by_name.model.backbone.bottom_up.resolutions == [1120, 896, 448]


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"tsb_1120_896_44_1x.*Did you mean .*tsb_1120_896_448_1x"):
        model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_44_1x")
    with pytest.raises(ConfigError, match=r"Did you mean 'quickstart/mask_rcnn_piip_digits\.py'"):
        model_zoo.get("mask_rcnn_pip_digits.py", trained=True)


def test_get_builds_the_model() -> None:
    torch.manual_seed(0)
    model = model_zoo.get(DIGITS)
    assert model.training
    images = [{"image": torch.randint(0, 256, (3, 96, 128)).float()}]
    with torch.no_grad():
        (out,) = model.eval()(images)
    assert out["instances"].image_size == (96, 128)


def test_a_type_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dtype=.* is for PIIP and single branches, and 'lsnet_t_300ep' has none"):
        model_zoo.get("lsnet_t_300ep", dtype="bfloat16")


def test_get_trained_needs_released_weights() -> None:
    with pytest.raises(ConfigError, match=r"no weights were released for 'quickstart/mask_rcnn_piip_digits'"):
        model_zoo.get(DIGITS, trained=True)


def test_rows_of_published_models_by_any_name(project: Path, tmp_path: Path) -> None:
    row = published_row(f"{TSB}.py")
    assert row["box_AP"] == "43.6"
    assert row == published_row(TSB) == published_row(str(project / "configs" / f"{TSB}.py"))
    assert published_row(DIGITS) is None
    mine = tmp_path / "mask_rcnn_piip_tsb_1120_896_448_1x.py"
    mine.write_text("model = None")
    assert published_row(str(mine)) is None


def _plain(cfg: DictConfig) -> Any:
    """A config without interpolations, and with what it instantiates, which a file holds by name."""

    def convert(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: locate(v) if k == "_target_" and isinstance(v, str) else convert(v) for k, v in node.items()}
        return [convert(v) for v in node] if isinstance(node, list) else node

    return convert(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_every_config_survives_a_save_and_instantiates(name: str, tmp_path: Path) -> None:
    cfg = packaged(name)
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    check_config(cfg)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert not (tmp_path / "config.yaml.pkl").exists()  # what Detectron2 writes where YAML does not do
    again = load_config(str(tmp_path / "config.yaml"))
    assert _plain(again) == _plain(cfg)  # so both build the same
    model = on_meta(name)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.backbone.bottom_up.branches.0.depth=3", "model.backbone.bottom_up.branches.0.depth", 3),
        ("model.backbone.bottom_up.resolutions=[896,672,448]", "dataloader.test.mapper.augmentations.0.max_size", 896),
        ("model.backbone.bottom_up.interaction_indexes=6", "model.backbone.bottom_up.interaction_indexes", 6),
        ("model.roi_heads.num_classes=3", "model.roi_heads.mask_head.num_classes", 3),
        ("model.backbone.out_channels=128", "model.roi_heads.box_head.input_shape.channels", 128),
        ("dataloader.train.total_batch_size=32", "train.max_iter", 12 * 3665),
        ("optimizer.lr=2e-4", "optimizer.params.base_lr", 2e-4),
        ("train.amp.dtype=float16", "train.amp.dtype", "float16"),
    ],
)
def test_overrides_reach_leaves_and_what_follows_from_them(override: str, key: str, value: object) -> None:
    assert OmegaConf.select(load_config(TSB, [override]), key) == value


@pytest.mark.parametrize(
    ("name", "override", "key", "value"),
    [
        ("mask_rcnn_piip_h6b_1024_512_1x", "augmentations.1.factor=1.5", "test.mapper.augmentations.0.factor", 1.5),
        (
            "mask_rcnn_piip_tsb_1120_896_448_lsj_100ep",
            "augmentations.1.size=896",
            "test.mapper.augmentations.0.max_size",
            896,
        ),
    ],
)
def test_size_of_the_test_follows_training(name: str, override: str, key: str, value: float) -> None:
    cfg = load_config(f"COCO-InstanceSegmentation/{name}", [f"dataloader.train.mapper.{override}"])
    assert OmegaConf.select(cfg.dataloader, key) == value


def test_overridden_model_is_built_so() -> None:
    overrides = [
        "model.backbone.bottom_up.branches.2.depth=6",
        "model.backbone.bottom_up.branches.2.window_size=0",
        "model.backbone.bottom_up.interaction_indexes=3",
        "model.backbone.bottom_up.interaction.num_points=2",
    ]
    backbone = build_on_meta(load_config(TSB, overrides).model.backbone.bottom_up)
    assert [b.num_blocks for b in backbone.branches] == [12, 12, 6]
    assert backbone.branches[2].window_sizes == [0] * 6
    assert len(backbone.interactions) == 3
    assert backbone.interactions[0][0].to_fine.attn.num_points == 2


def test_own_data_config_follows_its_classes() -> None:
    cfg = load_config("quickstart/mask_rcnn_piip_custom_coco", ["dataloader.custom.classes=[cat,dog,hen]"])
    model = build_on_meta(cfg.model)
    assert model.roi_heads.num_classes == model.roi_heads.box_predictor.num_classes == 3
    assert model.roi_heads.mask_head.predictor.out_channels == 3
