"""A small digits_scenes and a small dataset of one's own, both on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from piip.data import register_digits_scenes
from piip.data.datasets import digits_scenes


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds digits_scenes with 24 training and 8 validation scenes."""
    root = str(tmp_path_factory.mktemp("datasets"))
    digits_scenes.generate_digits_scenes(root, {"train": 24, "val": 8})
    return root


@pytest.fixture
def digits(small_root: str, monkeypatch: pytest.MonkeyPatch):
    """Registers the small digits_scenes under the usual names."""
    monkeypatch.setenv("DETECTRON2_DATASETS", small_root)
    register_digits_scenes()
    yield small_root
    monkeypatch.undo()
    register_digits_scenes()


@pytest.fixture(autouse=True)
def catalogs_restored():
    """Names that a test registers are gone after it."""
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


class OwnData:
    """A COCO-format dataset on disk: ``content`` may be edited, ``write()`` saves it."""

    def __init__(self, root: Path, sizes: list[tuple[int, int]]) -> None:
        self.json, self.images = str(root / "annotations.json"), str(root / "images")
        self.classes = ["cat", "dog"]
        rng = np.random.default_rng(0)
        (root / "images").mkdir(parents=True)
        self.content = {"images": [], "annotations": [], "categories": []}
        for i, (width, height) in enumerate(sizes):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / f"{i}.png")
            self.content["images"].append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
            x, y, w, h = 2 + i, 3, 10, 12
            annotation = {"id": i + 1, "image_id": i, "category_id": 7 - 4 * (i % 2), "bbox": [x, y, w, h]}
            annotation |= {"area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            self.content["annotations"].append(annotation)
        self.content["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        self.write()

    def write(self) -> None:
        Path(self.json).write_text(json.dumps(self.content))


@pytest.fixture
def own_data(tmp_path: Path) -> OwnData:
    return OwnData(tmp_path / "own", [(40, 30), (30, 40), (40, 30), (32, 32)])
