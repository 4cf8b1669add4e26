"""The evaluator: right answers score 100, and it can be built before any data were loaded."""

from __future__ import annotations

from pathlib import Path

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from piip.data import coco_dataset, get_dataset_dicts, register_digits_scenes
from piip.data.datasets import digits_scenes
from piip.errors import DataError
from piip.evaluation import build_coco_evaluator


@pytest.fixture
def small_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """digits_scenes with few scenes, registered but not yet made."""
    monkeypatch.setattr(digits_scenes, "SCENES", {"train": 1, "val": 12})
    register_digits_scenes(str(tmp_path / "datasets"))
    yield
    monkeypatch.undo()
    register_digits_scenes()


def truth(record: dict, shift: float = 0.0) -> Instances:
    """The annotations of an image as if a model had predicted them."""
    annotations = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in annotations]
    masks = [torch.from_numpy(mask_util.decode(a["segmentation"])).bool() for a in annotations if "segmentation" in a]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32) + shift)
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    instances.scores = torch.full((len(annotations),), 0.9)
    instances.pred_masks = torch.stack(masks) if masks else torch.zeros(len(boxes), record["height"], record["width"])
    return instances


def evaluate(evaluator, dicts: list[dict], shift: float = 0.0) -> dict:
    evaluator.reset()
    for record in dicts:
        evaluator.process([record], [{"instances": truth(record, shift)}])
    return evaluator.evaluate()


def test_perfect_predictions(small_digits, tmp_path: Path) -> None:
    evaluator = build_coco_evaluator("digits_scenes_val", str(tmp_path / "out"))  # makes the dataset
    dicts = get_dataset_dicts("digits_scenes_val", filter_empty=False)
    results = evaluate(evaluator, dicts)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP-digit 4"] == pytest.approx(100)
    assert (tmp_path / "out" / "coco_instances_results.json").exists()
    assert evaluate(evaluator, dicts, shift=6.0)["bbox"]["AP"] < 50


def test_boxes_alone(own_data, tmp_path: Path) -> None:
    for annotation in own_data.content["annotations"]:
        annotation.pop("segmentation")
    own_data.write()
    dicts = coco_dataset("own", own_data.json, own_data.images, own_data.classes)
    results = evaluate(build_coco_evaluator("own"), dicts)
    assert set(results) == {"bbox"}
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_unknown_and_missing_datasets() -> None:
    with pytest.raises(DataError, match=r"no dataset 'digits_scene_val'.*digits_scenes_val"):
        build_coco_evaluator("digits_scene_val")
    with pytest.raises(DataError, match="DETECTRON2_DATASETS"):
        build_coco_evaluator("coco_2017_val")
    MetadataCatalog.pop("digits_scene_val", None)
