"""Classes of pixels drawn, and in the report of a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from PIL import Image

from piip.data import SemanticMapper, build_test_loader, register_sem_seg
from piip.engine.config import load_config
from piip.visualization import answers_of, draw_labels, write_report
from piip.visualization.draw import _colour

GREY = np.full((80, 120, 3), 128, np.uint8)
NAMES = Metadata(stuff_classes=["background", "sky", "sea"], ignore_label=255)


def halves() -> np.ndarray:
    labels = np.zeros((80, 120), np.uint8)
    labels[:30], labels[60:] = 1, 2
    labels[40:44] = 255
    return labels


def test_classes_are_tinted_and_the_background_is_not() -> None:
    drawn = draw_labels(GREY, halves(), NAMES).astype(int)
    assert drawn.shape == GREY.shape
    assert (drawn[46:56] == 128).all()
    sky, sea = drawn[15, 100], drawn[70, 100]
    assert np.abs(sky - 128).max() > 30
    assert np.abs(sea - 128).max() > 30
    assert np.abs(sky - sea).max() > 30
    assert draw_labels(GREY, halves(), NAMES, shorter_side=160).shape == (160, 240, 3)


def test_nothing_but_background() -> None:
    assert np.array_equal(draw_labels(GREY, np.zeros((80, 120), np.uint8), NAMES), GREY)


def test_as_many_colours_as_classes() -> None:
    assert len({_colour(category) for category in range(150)}) == 150


def test_answers_about_pixels() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(halves() % 255).long(), 3).permute(2, 0, 1)
    answers, answer = answers_of({"sem_seg": logits}, NAMES)
    counts = answers.count(answer)
    assert counts == {0: 30 * 120, 1: 30 * 120, 2: 20 * 120}
    assert answers.describe(counts) == "38 % background, 38 % sky, 25 % sea"
    assert [record["category"] for record in answers.records(answer, 3)] == ["background", "sky", "sea"]
    assert answers.draw(GREY, answer, 0).shape == GREY.shape


@pytest.fixture
def loader(tmp_path: Path):
    """Two pictures of unlike sizes with labels of the digits' classes."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(64, 96), (96, 64)]):
        for kind, array in (("images", rng.integers(0, 256, (*size, 3))), ("labels", rng.integers(0, 11, size))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    register_sem_seg("report_labels", tmp_path / "images", tmp_path / "labels", [f"class {i}" for i in range(11)])
    mapper = SemanticMapper(is_train=False, augmentations=[], image_format="RGB", num_classes=11)
    yield build_test_loader(DatasetCatalog.get("report_labels"), mapper=mapper)
    DatasetCatalog.pop("report_labels")
    MetadataCatalog.pop("report_labels")


def test_report_of_a_segmentor(loader, tmp_path: Path) -> None:
    values = {"sem_seg/mIoU": 40.0, "sem_seg/fwIoU": 80.0, "sem_seg/mACC": 50.0, "sem_seg/pACC": 90.0}
    values |= {"sem_seg/IoU-class 1": 30.0, "sem_seg/ACC-class 1": 60.0, "sem_seg/IoU-class 2": 10.0}
    records = [{"iteration": 19, "total_loss": 2.0}, {"iteration": 20, "sem_seg/IoU-class 3": float("nan"), **values}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in records))
    model = instantiate(load_config("quickstart/semantic_fpn_piip_digits.py").model)
    folder = write_report(tmp_path, model=model, data_loader=loader, dataset_name="report_labels", num_images=2)
    assert {p.name for p in folder.iterdir()} == {"index.md", "iou.png", "losses.png", "predictions.png"}
    index = (folder / "index.md").read_text()
    assert "| sem_seg | 40.00 | 80.00 | 50.00 | 90.00 |" in index
    assert index.index("| class 2 | 10.00 | – |") < index.index("| class 1 | 30.00 | 60.00 |")
    assert "class 3" not in index
    assert "score" not in index
