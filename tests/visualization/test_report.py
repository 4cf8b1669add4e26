"""The report of a training, with a real model on real pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from skimage import data

from piip.data import DetectionMapper, build_test_loader
from piip.engine.config import load_config
from piip.visualization import write_report
from piip.visualization.grid import Example, grid_figure, predict_examples

NAME = "report_test_pictures"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five pictures with a box and a mask each, in Detectron2's catalogs; gives a loader."""
    folder = tmp_path_factory.mktemp("pictures")
    items = []
    for i in range(5):
        Image.fromarray(data.astronaut()[: 96 + 16 * i, 200:328]).save(folder / f"{i}.png")
        annotation = {
            "bbox": [8, 8, 88, 88],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": i,
            "segmentation": [[8, 8, 88, 8, 88, 88]],
        }
        items.append(
            {
                "file_name": str(folder / f"{i}.png"),
                "image_id": i,
                "height": 96 + 16 * i,
                "width": 128,
                "annotations": [annotation],
            }
        )
    DatasetCatalog.register(NAME, lambda: items)
    MetadataCatalog.get(NAME).thing_classes = [f"digit {i}" for i in range(10)]
    mapper = DetectionMapper(is_train=False, augmentations=[], image_format="RGB")
    yield build_test_loader(items, mapper=mapper, num_workers=0)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    cfg = load_config("quickstart/mask_rcnn_piip_digits.py")
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    return instantiate(cfg.model)


def test_report_of_a_training(dataset, model, tmp_path):
    records = [{"iteration": i, "total_loss": 2.0, "loss_cls": 2.0, "lr": 0.1} for i in (19, 39)]
    records.append({"iteration": 40, "bbox/AP": 50.126, "bbox/AP50": 80.0, "bbox/APs": float("nan"), "segm/AP": 40.0})
    (tmp_path / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in records))
    model.train()
    folder = write_report(tmp_path, model=model, data_loader=dataset, dataset_name=NAME, num_images=3)
    assert model.training
    assert folder == tmp_path / "report"
    assert sorted(p.name for p in folder.iterdir()) == ["ap.png", "index.md", "losses.png", "predictions.png"]
    for name in ("ap.png", "losses.png", "predictions.png"):
        picture = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 10
    index = (folder / "index.md").read_text()
    assert "40 iterations" in index
    assert "| bbox | 50.13 | 80.00 | – |" in index
    assert all(f"]({name})" in index for name in ("ap.png", "losses.png", "predictions.png"))


def test_report_without_metrics_says_so(dataset, model, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "ap.png").write_bytes(b"of an earlier training")
    folder = write_report(tmp_path, model=model, data_loader=dataset, dataset_name=NAME, num_images=1)
    assert sorted(p.name for p in folder.iterdir()) == ["index.md", "predictions.png"]
    index = (folder / "index.md").read_text()
    assert "There is no `metrics.json`" in index
    assert "No evaluation was recorded" in index
    assert "No loss was recorded" in index


def test_the_same_report_twice_is_the_same_bytes(dataset, model, tmp_path):
    pictures = []
    for name in "ab":
        folder = write_report(tmp_path / name, model=model, data_loader=dataset, dataset_name=NAME, num_images=1)
        pictures.append((folder / "predictions.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_examples_are_the_first_pictures_with_their_truth(dataset, model):
    examples = predict_examples(model, dataset, NAME, num_images=3, score_threshold=1.0)
    assert [e.title for e in examples] == ["image 0", "image 1", "image 2"]
    for example in examples:
        assert example.truth.shape == example.prediction.shape
        assert not np.array_equal(example.truth, example.prediction)  # nothing scores above 1
    all_found = predict_examples(model, dataset, NAME, num_images=1, score_threshold=0.0)
    assert not np.array_equal(all_found[0].prediction, examples[0].prediction)


def test_more_images_than_there_are(dataset, model):
    assert len(predict_examples(model, dataset, NAME, num_images=50, score_threshold=1.0)) == 5


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 2)), (2, (2, 2)), (3, (2, 4)), (8, (4, 4))])
def test_grid_puts_truth_beside_prediction(count, shape):
    picture = np.zeros((30, 40, 3), np.uint8)
    figure = grid_figure([Example(f"image {i}", picture, picture, found=1 - i) for i in range(count)])
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["image 0 · ground truth", "image 0 · prediction"]
    assert len(titles) == 2 * count
    assert titles[3:4] == ["image 1 · nothing predicted"] * (count > 1)
