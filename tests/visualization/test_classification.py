"""What a classifier took for what, as the report shows it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.data.catalog import MetadataCatalog
from PIL import Image

from piip.visualization.answers import answers_of
from piip.visualization.classification import classified_figure, confusion_figure, confusion_table
from piip.visualization.draw import draw_scores

NAMES = Metadata(thing_classes=["cat", "dog", "fox"])
MATRIX = np.array([[5, 2, 0], [0, 3, 1], [2, 0, 9]])


def pixels(figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_figure_shows_all_numbers_and_names():
    figure = confusion_figure(MATRIX, NAMES)
    assert texts(figure) == ["5", "2", "3", "1", "2", "9"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["cat", "dog", "fox"]
    assert pixels(figure).std() > 10
    assert confusion_figure(np.eye(41, dtype=int), NAMES) is None


def test_classes_without_images_are_no_error():
    assert texts(confusion_figure(np.diag([3, 0]), NAMES)) == ["3"]


def test_table_lists_the_most_frequent_mistakes_first():
    rows = confusion_table(MATRIX, NAMES)[4:]
    assert rows == ["| cat | dog | 2 |", "| fox | cat | 2 |", "| dog | fox | 1 |"]
    assert confusion_table(np.diag([1, 2, 3]), NAMES) == ["There are no mistakes."]
    large = np.ones((30, 30), int)
    assert len(confusion_table(large, NAMES)) == 4 + 15


class Always(torch.nn.Module):
    """Takes everything for a dog, or for an object."""

    def __init__(self, key: str = "scores") -> None:
        super().__init__()
        self.key = key

    def forward(self, batch: list[dict]) -> list[dict]:
        return [{self.key: torch.tensor([0.2, 0.7, 0.1])} for _ in batch]


def samples(labels: list[int]) -> list[list[dict]]:
    return [[{"image": torch.full((3, 6, 6), 80, dtype=torch.uint8), "label": label}] for label in labels]


@pytest.mark.parametrize(
    ("labels", "count", "titles"),
    [
        ([1, 0, 2, 1, 1], 4, ["dog (70%)\ninstead of cat", "dog (70%)\ninstead of fox", "dog (70%)", "dog (70%)"]),
        ([0, 2, 0], 4, ["dog (70%)\ninstead of cat", "dog (70%)\ninstead of fox", "dog (70%)\ninstead of cat"]),
        ([1, 1], 1, ["dog (70%)"]),
    ],
)
def test_pictures_with_mistakes_first(labels, count, titles):
    MetadataCatalog.get("classified_pictures").thing_classes = ["cat", "dog", "fox"]
    figure = classified_figure(Always(), samples(labels), "classified_pictures", count)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == titles
    assert pixels(figure).std() > 10


def test_other_models_have_no_such_pictures():
    assert classified_figure(Always("instances"), samples([0]), "classified_pictures") is None


def test_scores_are_drawn_counted_and_recorded():
    scores = torch.tensor([0.2, 0.7, 0.1])
    answers, answer = answers_of({"scores": scores}, NAMES)
    assert answers.describe(answers.count(answer) + answers.count(answer)) == "2 x dog"
    assert answers.records(answer, 4)[0] == {
        "image_id": 4,
        "category_id": 1,
        "category": "dog",
        "score": pytest.approx(0.7),
    }
    image = np.full((60, 80, 3), 90, np.uint8)
    drawn = draw_scores(image, scores, NAMES)
    assert drawn.shape == image.shape
    assert 0.01 < (drawn != image).any(-1).mean() < 0.6
    assert draw_scores(image, scores, NAMES, shorter_side=120).shape == (120, 160, 3)
