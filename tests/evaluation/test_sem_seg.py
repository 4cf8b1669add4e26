"""Figures of the semantic segmentation evaluator against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from piip.data import register_sem_seg
from piip.evaluation import build_sem_seg_evaluator


@pytest.fixture
def labels(tmp_path: Path):
    """A label map of 2 x 6 pixels, two of which do not count."""
    truth = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 255, 255]], dtype=np.uint8)
    for kind, array in (("images", np.zeros((2, 6, 3), np.uint8)), ("labels", truth)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    register_sem_seg("tiny_labels", tmp_path / "images", tmp_path / "labels", ["road", "car", "sky", "sea"])
    yield str(tmp_path / "images" / "a.png")
    DatasetCatalog.pop("tiny_labels")
    MetadataCatalog.pop("tiny_labels")


def test_by_hand(labels: str, tmp_path: Path) -> None:
    predicted = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 3]])
    evaluator = build_sem_seg_evaluator("tiny_labels", str(tmp_path / "out"))
    evaluator.reset()
    logits = torch.nn.functional.one_hot(predicted, 4).permute(2, 0, 1).float()
    evaluator.process([{"file_name": labels}], [{"sem_seg": logits}])
    figures = evaluator.evaluate()["sem_seg"]
    # road: 5 of 6, none too many; car: 3 of 4, one too many; sky: never there, predicted once; sea: only where nothing
    # counts, so it is no class of this test.
    road, car, sky = 5 / 6, 3 / 5, 0.0
    assert figures["IoU-road"] == pytest.approx(100 * road)
    assert figures["IoU-car"] == pytest.approx(100 * car)
    assert np.isnan(figures["IoU-sea"])
    assert figures["mIoU"] == pytest.approx(100 * (road + car + sky) / 3)
    assert figures["fwIoU"] == pytest.approx(100 * (0.6 * road + 0.4 * car))
    assert figures["mACC"] == pytest.approx(100 * (5 / 6 + 3 / 4) / 2)
    assert figures["pACC"] == pytest.approx(100 * 8 / 10)
    assert (tmp_path / "out" / "sem_seg_predictions.json").is_file()
