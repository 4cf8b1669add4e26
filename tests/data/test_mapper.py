"""The mapper: Detectron2's result where the data are right, one clear sentence where they are not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image

from piip.data import DetectionMapper, coco_dataset, get_dataset_dicts
from piip.errors import DataError

SETTINGS = {"is_train": True, "image_format": "RGB", "use_instance_mask": True}


def mapper(**changes) -> DetectionMapper:
    return DetectionMapper(**{**SETTINGS, "augmentations": [], "instance_mask_format": "bitmask", **changes})


@pytest.fixture
def record(own_data) -> dict:
    return coco_dataset("own", own_data.json, own_data.images, own_data.classes)[0]


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_equals_detectron2(record: dict, mask_format: str) -> None:
    settings = {**SETTINGS, "augmentations": [T.ResizeShortestEdge(60, 200)], "instance_mask_format": mask_format}
    ours, theirs = (cls(**settings, recompute_boxes=True)(record) for cls in (DetectionMapper, DatasetMapper))
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["image"].shape == (3, 60, 80)
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert type(ours["instances"].gt_masks) is type(theirs["instances"].gt_masks)


def test_reads_rgb_and_visible_masks(digits: str) -> None:
    record = get_dataset_dicts("digits_scenes_val")[0]
    sample = mapper()(record)
    with Image.open(record["file_name"]) as image:
        assert (sample["image"].numpy().transpose(1, 2, 0) == np.asarray(image)).all()
    assert sample["instances"].gt_masks.tensor.sum(dim=(1, 2)).min() > 0
    assert torch.equal(
        sample["instances"].gt_masks.get_bounding_boxes().tensor, sample["instances"].gt_boxes.tensor.float()
    )


def test_can_be_sent_to_a_worker(record: dict) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(mapper()))(record)["image"], mapper()(record)["image"])


def test_missing_image(record: dict) -> None:
    os.remove(record["file_name"])
    with pytest.raises(DataError, match=r"image '.*0.png' does not exist; restore"):
        mapper()(record)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_corrupt_image(record: dict, damage: str) -> None:
    path = Path(record["file_name"])
    path.write_bytes({"empty": b"", "truncated": path.read_bytes()[:900], "text": b"<html>"}[damage])
    with pytest.raises(DataError, match=r"image '.*0.png' cannot be read .*; restore"):
        mapper()(record)


def test_another_size_than_annotated(record: dict) -> None:
    Image.new("RGB", (7, 9)).save(record["file_name"])
    with pytest.raises(DataError, match=r"0.png' is 7x9 pixels .* say 40x30"):
        mapper()(record)


def test_run_lengths_as_polygons(digits: str) -> None:
    record = get_dataset_dicts("digits_scenes_val")[0]
    with pytest.raises(DataError, match="instance_mask_format=bitmask"):
        mapper(instance_mask_format="polygon")(record)


def test_mask_of_another_size(digits: str) -> None:
    record = get_dataset_dicts("digits_scenes_val")[0]
    record["annotations"][0]["segmentation"]["size"] = [64, 64]
    with pytest.raises(DataError, match=r"mask of image .* is 64x64 pixels, but the image is 128x128"):
        mapper()(record)


def test_broken_label_map(record: dict, tmp_path: Path) -> None:
    labels = record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    with pytest.raises(DataError, match=r"label map '.*labels.png' does not exist"):
        mapper()(record)
    Image.new("L", (40, 31)).save(labels)
    with pytest.raises(DataError, match=r"labels.png' is 40x31 pixels, but its image .* is 40x30"):
        mapper(augmentations=[T.CropTransform(0, 0, 8, 8), Fails()])(record)


class Fails(T.Augmentation):
    """Somebody's augmentation with a bug."""

    def get_transform(self, image):
        raise ZeroDivisionError("a bug")


def test_bugs_are_not_blamed_on_the_data(record: dict) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        mapper(augmentations=[Fails()])(record)
