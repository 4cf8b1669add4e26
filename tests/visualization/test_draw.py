"""Drawing instances: sizes, colours, masks, labels."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.colors import to_rgb

from piip.visualization.draw import PALETTE, class_name, draw_annotations, draw_instances

GREY = np.full((60, 80, 3), 128, np.uint8)
NAMES = Metadata(thing_classes=["cat", "dog"])


def instances(boxes, classes, masks=None) -> Instances:
    found = Instances(GREY.shape[:2])
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.linspace(0.9, 0.5, len(classes))
    if masks is not None:
        found.pred_masks = torch.tensor(np.stack(masks))
    return found


def ring() -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[20:50, 20:60] = True
    mask[30:40, 35:45] = False
    return mask


def tint(picture: np.ndarray, y: int, x: int) -> np.ndarray:
    return picture[y, x].astype(float) - 128


def test_the_size_stays_or_follows_the_shorter_side():
    found = instances([[20, 20, 60, 50]], [0])
    assert draw_instances(GREY, found, NAMES).shape == (60, 80, 3)
    assert draw_instances(GREY, found, NAMES, shorter_side=300).shape == (300, 400, 3)
    assert draw_instances(GREY, found, NAMES, shorter_side=30).shape == (30, 40, 3)


def test_nothing_found_leaves_the_picture_alone():
    drawn = draw_instances(GREY, instances([], []), NAMES)
    assert np.array_equal(drawn, GREY)
    drawn[:] = 0
    assert GREY.any()


def test_pixels_outside_boxes_and_labels_are_untouched():
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    drawn = draw_instances(noise, instances([[20, 20, 60, 50]], [0]), NAMES)
    assert np.array_equal(drawn[70:], noise[70:])
    assert not np.array_equal(drawn, noise)


def test_masks_are_tinted_and_holes_are_not():
    drawn = draw_instances(GREY, instances([[20, 20, 60, 50]], [1], [ring()]), NAMES)
    expected = 0.45 * (255 * np.array(to_rgb(PALETTE[1])) - 128)
    assert np.allclose(tint(drawn, 45, 50), expected, atol=3)
    assert np.allclose(tint(drawn, 35, 40), 0, atol=3)


def test_the_input_is_not_changed():
    before = GREY.copy()
    draw_instances(GREY, instances([[20, 20, 60, 50]], [0], [ring()]), NAMES)
    assert np.array_equal(GREY, before)


def test_a_class_has_one_colour_in_truth_and_prediction():
    predicted = draw_instances(GREY, instances([[20, 20, 60, 50]], [1], [ring()]), NAMES)
    segmentation = mask_util.encode(np.asfortranarray(ring()))
    truth = draw_annotations(
        GREY,
        [{"bbox": [20, 20, 40, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": segmentation}],
        NAMES,
    )
    assert np.array_equal(predicted[45, 50], truth[45, 50])


@pytest.mark.parametrize("kind", ["polygon", "rle", "uncompressed"])
def test_ground_truth_of_every_kind(kind):
    square = np.zeros((60, 80), np.uint8)
    square[20:50, 20:60] = 1
    column_major = square.flatten(order="F")
    runs = np.diff(np.flatnonzero(np.diff(column_major, prepend=0, append=0)), prepend=0)
    segmentation = {
        "polygon": [[20, 20, 60, 20, 60, 50, 20, 50]],
        "rle": mask_util.encode(np.asfortranarray(square)),
        "uncompressed": {"size": [60, 80], "counts": [*runs.tolist(), int(square.size - runs.sum())]},
    }[kind]
    annotation = {"bbox": [20, 20, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    drawn = draw_annotations(GREY, [{**annotation, "segmentation": segmentation}], NAMES)
    assert np.abs(tint(drawn, 40, 40)).max() > 20
    assert np.abs(tint(drawn, 55, 70)).max() == 0
    crowd = draw_annotations(GREY, [{**annotation, "segmentation": segmentation, "iscrowd": 1}], NAMES)
    assert np.array_equal(crowd, GREY)


def test_boxes_alone_are_drawn():
    annotation = {"bbox": [20, 20, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    drawn = draw_annotations(GREY, [annotation], NAMES)
    assert np.abs(tint(drawn, 50, 40)).max() > 20
    assert np.abs(tint(drawn, 45, 50)).max() == 0


def test_labels_of_crowded_boxes_stay_in_the_picture_and_apart():
    """The same box many times: every label finds a place of its own."""
    black = np.zeros((300, 400, 3), np.uint8)
    found = Instances(black.shape[:2])
    found.pred_boxes = Boxes(torch.tensor([[-5.0, -5.0, 390.0, 295.0]] * 4))
    found.pred_classes = torch.tensor([0, 1, 2, 3])
    found.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    drawn = draw_instances(black, found, Metadata())
    for category in range(4):
        same = np.abs(drawn.astype(int) - np.round(255 * np.array(to_rgb(PALETTE[category])))).max(-1) <= 2
        assert same.sum() > 300, f"the label of class {category} is hidden"


def test_class_names():
    assert class_name(NAMES, 1) == "dog"
    assert class_name(NAMES, 2) == "class 2"
    assert class_name(Metadata(), 0) == "class 0"
