"""The data pieces of the configs: they load, survive a save, take overrides and work."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from piip.errors import DataError

PIECES = ["digits", "coco", "custom_coco"]


def load(project: Path, name: str, output: Path, overrides: tuple[str, ...] = ()):
    """A piece as a leaf config sees it, saved and loaded again."""
    config = LazyConfig.load(str(project / "configs/common/data" / f"{name}.py"))
    config.train = {"seed": 4, "output_dir": str(output)}
    config = LazyConfig.apply_overrides(config, list(overrides))
    output.mkdir(exist_ok=True)
    LazyConfig.save(config, str(output / "config.yaml"))
    assert not (output / "config.yaml.pkl").exists()
    again = LazyConfig.load(str(output / "config.yaml"))
    LazyConfig.save(again, str(output / "again.yaml"))
    assert (output / "again.yaml").read_text() == (output / "config.yaml").read_text()
    return again


def test_digits(project: Path, tmp_path: Path, digits: str) -> None:
    config = load(project, "digits", tmp_path / "out", ("dataloader.train.total_batch_size=3",))
    (batch,) = islice(instantiate(config.dataloader.train), 1)
    assert [sample["image"].shape for sample in batch] == [(3, 128, 128)] * 3
    assert all(sample["instances"].has("gt_masks") for sample in batch)
    samples = [sample for batch in instantiate(config.dataloader.test) for sample in batch]
    assert len(samples) == 8
    evaluator = instantiate(config.dataloader.evaluator)
    assert isinstance(evaluator, COCOEvaluator)
    assert evaluator._output_dir == str(tmp_path / "out" / "inference")


def test_digits_in_two_runs_are_the_same(project: Path, tmp_path: Path, digits: str) -> None:
    images = []
    for name in ("a", "b"):
        config = load(project, "digits", tmp_path / name)
        images.append(torch.stack([s["image"] for s in next(iter(instantiate(config.dataloader.train)))]))
    assert torch.equal(*images)


def test_coco_test_follows_training(project: Path, tmp_path: Path) -> None:
    sizes = [f"dataloader.train.mapper.augmentations.0.{k}" for k in ("short_edge_length=672", "max_size=1120")]
    config = load(project, "coco", tmp_path / "out", (*sizes, "dataloader.train.dataset.names=coco_2017_val"))
    mapper = instantiate(config.dataloader.test.mapper)
    assert mapper.augmentations.augs[0].max_size == 1120
    assert set(mapper.augmentations.augs[0].short_edge_length) == {672}
    assert instantiate(config.dataloader.train.mapper).instance_mask_format == "polygon"
    assert config.dataloader.evaluator.dataset_name == "coco_2017_val"
    with pytest.raises(DataError, match="DETECTRON2_DATASETS"):
        instantiate(config.dataloader.train)
    with pytest.raises(DataError, match="DETECTRON2_DATASETS"):
        instantiate(config.dataloader.evaluator)


def test_own_data_from_the_command_line(project: Path, tmp_path: Path, own_data) -> None:
    own_data.content["categories"].append({"id": 9, "name": "hen"})
    own_data.write()
    fields = [f"json.{split}={own_data.json}" for split in ("train", "val")]
    fields += [f"images.{split}={own_data.images}" for split in ("train", "val")] + ["classes=[cat,dog,hen]"]
    overrides = [f"dataloader.custom.{field}" for field in fields] + ["dataloader.train.total_batch_size=2"]
    overrides += [f"dataloader.{part}.num_workers=1" for part in ("train", "test")]
    config = load(project, "custom_coco", tmp_path / "out", tuple(overrides))
    (batch,) = islice(instantiate(config.dataloader.train), 1)
    assert len(batch) == 2
    assert min(batch[0]["image"].shape[1:]) == 800
    assert len(list(instantiate(config.dataloader.test))) == 4
    assert MetadataCatalog.get("custom_val").thing_classes == ["cat", "dog", "hen"]
    instantiate(config.dataloader.evaluator)
    # The number of classes follows wherever a model interpolates it.
    head = {"_target_": "builtins.dict", "count": "${..num_classes}"}
    config.model = {"_target_": "builtins.dict", "num_classes": config.num_classes, "head": head}
    assert instantiate(config.model) == {"num_classes": 3, "head": {"count": 3}}


def test_own_data_that_are_not_there(project: Path, tmp_path: Path) -> None:
    config = load(project, "custom_coco", tmp_path / "out")
    with pytest.raises(DataError, match=r"'custom_train'.* no file .*datasets/custom/annotations/train.json"):
        instantiate(config.dataloader.train)
    assert not os.path.exists(tmp_path / "out" / "inference")
