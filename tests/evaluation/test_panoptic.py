"""Panoptic quality against counting by hand, and on the bundled scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from piip.data import register_digits_panoptic, register_digits_scenes
from piip.data.datasets import digits_scenes
from piip.errors import DataError
from piip.evaluation import PanopticEvaluator

TRUTH = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [2, 2, 0, 0, 3, 3, 3, 3],
        [3, 3, 3, 3, 3, 3, 3, 3],
    ]
)


@pytest.fixture
def records(tmp_path: Path):
    """One picture with two cats (segments 1 and 2), grass (3), and two pixels that do not count."""
    Image.fromarray(np.stack([TRUTH, TRUTH * 0, TRUTH * 0], -1).astype(np.uint8)).save(tmp_path / "a.png")
    segments = [{"id": i, "category_id": 0, "isthing": True} for i in (1, 2)]
    segments.append({"id": 3, "category_id": 1, "isthing": False})
    record = {"file_name": "a.jpg", "pan_seg_file_name": str(tmp_path / "a.png"), "segments_info": segments}
    DatasetCatalog.register("tiny_panoptic", lambda: [record])
    MetadataCatalog.get("tiny_panoptic").set(thing_classes=["cat", "dog"], stuff_classes=["things", "grass"])
    yield [record]
    DatasetCatalog.pop("tiny_panoptic")
    MetadataCatalog.pop("tiny_panoptic")


def evaluate(evaluator: PanopticEvaluator, ids: np.ndarray, segments: list[dict]) -> dict[str, float]:
    evaluator.reset()
    evaluator.process([{"file_name": "a.jpg"}], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
    return evaluator.evaluate()["panoptic_seg"]


def test_the_truth_is_perfect(records: list[dict]) -> None:
    figures = evaluate(PanopticEvaluator("tiny_panoptic"), TRUTH.copy(), records[0]["segments_info"])
    assert all(figures[key] == pytest.approx(100) for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ-cat", "PQ-grass"))
    assert np.isnan(figures["PQ-dog"])


def test_by_hand(records: list[dict]) -> None:
    found = TRUTH.copy()
    found[0, 6:] = 3  # of the first cat 6 of 8 pixels are found; the grass gets the others
    found[1, :4] = 4  # the second cat and what does not count are taken for a dog
    segments = [
        {"id": 1, "category_id": 0, "isthing": True},
        {"id": 3, "category_id": 1, "isthing": False},
        {"id": 4, "category_id": 1, "isthing": True},
    ]
    figures = evaluate(PanopticEvaluator("tiny_panoptic"), found, segments)
    cat_sq, cat_rq = 6 / 8, 1 / (1 + 0.5)  # one found, one missed
    grass = 12 / 14
    assert figures["PQ-cat"] == pytest.approx(100 * cat_sq * cat_rq)
    assert figures["PQ-grass"] == pytest.approx(100 * grass)
    assert figures["PQ-dog"] == 0  # one found that is none
    assert figures["PQ"] == pytest.approx(100 * (cat_sq * cat_rq + grass + 0) / 3)
    assert figures["SQ"] == pytest.approx(100 * (cat_sq + grass + 0) / 3)
    assert figures["RQ"] == pytest.approx(100 * (cat_rq + 1 + 0) / 3)
    assert figures["PQ_th"] == pytest.approx(100 * cat_sq * cat_rq / 2)
    assert figures["PQ_st"] == pytest.approx(100 * grass)


def test_digits_with_panoptic_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits_scenes.generate_digits_scenes(str(tmp_path), {"train": 1, "val": 3})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    try:
        register_digits_panoptic()
        evaluator = PanopticEvaluator("digits_scenes_panoptic_val")
        for record in DatasetCatalog.get("digits_scenes_panoptic_val"):
            stuff = np.asarray(Image.open(record["sem_seg_file_name"]))
            segments = np.asarray(Image.open(record["pan_seg_file_name"]))[..., 0]
            things = [info["id"] for info in record["segments_info"] if info["isthing"]]
            assert len(things) == len(record["annotations"])
            assert np.array_equal(np.isin(segments, things), stuff == 0)
            predicted = torch.from_numpy(segments.astype(np.int32)), record["segments_info"]
            evaluator.process([record], [{"panoptic_seg": predicted}])
        assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)
    finally:
        monkeypatch.undo()
        register_digits_panoptic()
        register_digits_scenes()


def test_datasets_without_panoptic_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DatasetCatalog.register("boxes_alone", lambda: [{"file_name": "a.jpg"}])
    try:
        with pytest.raises(DataError, match="'boxes_alone' has no panoptic maps"):
            PanopticEvaluator("boxes_alone")
    finally:
        DatasetCatalog.pop("boxes_alone")
