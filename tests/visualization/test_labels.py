"""Classes of pixels drawn, and in the report of a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from PIL import Image

from piip.data import SemanticMapper, build_test_loader, register_sem_seg
from piip.engine.config import load_config
from piip.visualization import answers_of, draw_labels, draw_segments, write_report
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


def test_answers_about_segments() -> None:
    names = Metadata(
        thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={17: 0, 18: 1}, stuff_classes=["things", "sky"]
    )
    ids = torch.tensor(halves() % 255).int()
    segments = [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 1, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 1, "area": 2400},
    ]
    answers, answer = answers_of({"sem_seg": None, "instances": None, "panoptic_seg": (ids, segments)}, names)
    counts = answers.count(answer)
    assert answers.describe(counts + counts) == "2 objects (2 dog), sky"
    dog, sky = answers.records(answer, 3)
    assert (dog["category_id"], dog["category"], dog["score"], dog["isthing"]) == (18, "dog", 0.9, True)
    assert (mask_util.decode(sky["segmentation"]) == (halves() == 2)).all()
    drawn = answers.draw(GREY, answer, 0)
    assert (drawn[46:56] == 128).all()  # of no segment
    assert len({tuple(drawn[y, 110]) for y in (20, 50, 75)}) == 3
    assert np.array_equal(draw_segments(GREY, halves(), [], names), GREY)
    stuff = [{"id": 1, "category_id": 0, "isthing": False}]
    assert np.array_equal(draw_segments(GREY, halves(), stuff, NAMES), GREY)  # the background


def test_report_of_a_panoptic_model(tmp_path: Path) -> None:
    record = {"iteration": 20, "total_loss": 1.0, "panoptic_seg/PQ": 40.0}
    (tmp_path / "metrics.json").write_text(json.dumps(record) + "\n")
    cfg = load_config("quickstart/panoptic_fpn_piip_digits.py", ["model.combine_instances_score_thresh=0.0"])
    loader = instantiate(cfg.dataloader.test)
    name = "digits_scenes_panoptic_val"
    folder = write_report(tmp_path, model=instantiate(cfg.model), data_loader=loader, dataset_name=name, num_images=2)
    assert {p.name for p in folder.iterdir()} == {"index.md", "pq.png", "losses.png", "predictions.png"}
    assert "score" not in (folder / "index.md").read_text()


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
