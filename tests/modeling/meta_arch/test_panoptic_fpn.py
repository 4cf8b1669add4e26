"""Detectron2's Panoptic FPN with our backbone, head and data: one step, and one picture."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from piip.data import register_digits_panoptic, register_digits_scenes
from piip.data.datasets import digits_scenes
from piip.engine.config import load_config


@pytest.fixture
def cfg(tmp_path, monkeypatch: pytest.MonkeyPatch):
    digits_scenes.generate_digits_scenes(str(tmp_path), {"train": 2, "val": 1})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = load_config("quickstart/panoptic_fpn_piip_digits.py")
    register_digits_panoptic()  # whatever was registered before
    yield cfg
    monkeypatch.undo()
    register_digits_panoptic()
    register_digits_scenes()


def test_one_step_and_one_picture(cfg) -> None:
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    records = DatasetCatalog.get("digits_scenes_panoptic_train")
    mapper = instantiate(cfg.dataloader.train.mapper)
    batch = [mapper(record) for record in records]
    assert set(batch[0]["sem_seg"].unique().tolist()) == {0, 1}
    with EventStorage():
        losses = model(batch)
    assert {"loss_sem_seg", "loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.weight.grad.abs().sum() > 0
    model.eval()
    mapper = instantiate(cfg.dataloader.test.mapper)
    with torch.no_grad():
        (output,) = model([mapper(DatasetCatalog.get("digits_scenes_panoptic_val")[0])])
    segments, info = output["panoptic_seg"]
    assert segments.shape == (128, 128)
    assert {i["id"] for i in info} == set(segments.unique().tolist()) - {0}
