"""digits_scenes: what is drawn, and that it appears on disk whole, once, and always the same."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from piip.data import get_dataset_dicts, register_digits_scenes
from piip.data.datasets import digits_scenes
from piip.data.datasets.digits_rendering import MIN_VISIBLE, encode_png, render_scene, upscale
from piip.errors import DataError

FOLDER = digits_scenes.FOLDER


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def scenes(count: int, split: str = "val"):
    digits, targets = load_digits(return_X_y=True)
    chosen = digits_scenes.source_indices(split)
    digits = digits.reshape(-1, 8, 8).astype(np.int64)[chosen]
    for i in range(count):
        yield render_scene(np.random.Generator(np.random.PCG64(i)), digits, targets[chosen])


def test_same_bytes_always(tmp_path: Path) -> None:
    for name in ("a", "b"):
        digits_scenes.generate_digits_scenes(str(tmp_path / name), {"train": 3, "val": 2})
    assert tree_hash(tmp_path / "a" / FOLDER) == tree_hash(tmp_path / "b" / FOLDER)
    # Bytes of every machine; a change of the drawing wants a new FOLDER, so that old files are not taken for new.
    assert tree_hash(tmp_path / "a" / FOLDER) == "72fc9e9fbbc0c20d18f6b731be16685769086245b3dbfcd5aa433d87d960d6b5"


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path: Path, small_root: str) -> None:
    folder = Path(digits_scenes.generate_digits_scenes(str(tmp_path), {"train": 3, "val": 2}))
    for path in folder.glob("images/*/*.png"):
        assert path.read_bytes() == (Path(small_root) / FOLDER / path.relative_to(folder)).read_bytes()


def test_another_seed_gives_other_scenes(tmp_path: Path) -> None:
    images = []
    for seed in (1, 2):
        folder = digits_scenes.generate_digits_scenes(str(tmp_path / str(seed)), {"val": 1}, seed=seed)
        images.append(Path(folder, "images/val/000000.png").read_bytes())
    assert images[0] != images[1]


def test_splits_are_drawn_from_different_digits() -> None:
    digits, targets = load_digits(return_X_y=True)
    train, val = (digits_scenes.source_indices(split) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(len(digits)))
    pictures = [{digits[i].tobytes() for i in chosen} for chosen in (train, val)]
    assert not pictures[0] & pictures[1]
    assert set(targets[val]) == set(targets[train]) == set(range(10))


def test_scenes_are_varied_and_legible() -> None:
    drawn = list(scenes(150))
    assert {len(scene.labels) for scene in drawn} == set(range(1, 7))
    assert {label for scene in drawn for label in scene.labels} == set(range(10))
    areas = [mask.any(axis=1).sum() for scene in drawn for mask in scene.masks]
    assert min(areas) >= 8
    assert max(areas) >= 50
    assert all(mask.sum() >= 30 for scene in drawn for mask in scene.masks)
    assert all((scene.masks.sum(axis=0) <= 1).all() for scene in drawn)
    boxes = [mask_util.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), np.uint8)) for scene in drawn]
    overlaps = [mask_util.iou(b, b, [0] * len(b)) for b in (np.array(mask_util.toBbox(runs)) for runs in boxes)]
    overlapped = [(matrix - np.eye(len(matrix))).max(axis=1) > 0 for matrix in overlaps]
    assert np.concatenate(overlapped).mean() > 0.25
    assert 0 < MIN_VISIBLE <= 100


def test_other_sizes() -> None:
    digits = load_digits().images.astype(np.int64)
    scene = render_scene(np.random.Generator(np.random.PCG64(3)), digits, np.arange(len(digits)) % 10, size=200)
    assert scene.image.shape == (200, 200, 3)
    assert scene.masks.shape[1:] == (200, 200)


def test_upscaling_keeps_constants_and_range() -> None:
    assert (upscale(np.full((4, 5), 77), 30, 21) == 77).all()
    steps = upscale(np.array([[0, 0, 255, 255]]), 8, 64)
    assert steps.min() == 0
    assert steps.max() == 255
    assert (np.diff(steps[0][24:40]) >= 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (17, 31, 3), (160, 170, 3)])
def test_png_is_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(encode_png(array))
    with Image.open(tmp_path / "x.png") as image:
        assert (np.asarray(image) == array).all()


def test_coco_api_reads_consistent_annotations(small_root: str) -> None:
    coco = COCO(os.path.join(small_root, FOLDER, "annotations", "instances_train.json"))
    assert len(coco.imgs) == 24
    assert [c["id"] for c in coco.loadCats(coco.getCatIds())] == list(range(1, 11))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_label_maps_agree_with_masks(digits: str) -> None:
    semantic = {os.path.basename(d["file_name"]): d for d in get_dataset_dicts("digits_scenes_sem_seg_val")}
    instances = get_dataset_dicts("digits_scenes_val")
    assert len(semantic) == len(instances) == 8
    for record in instances:
        expected = np.zeros((128, 128), dtype=np.uint8)
        for annotation in record["annotations"]:
            expected[mask_util.decode(annotation["segmentation"]) > 0] = annotation["category_id"] + 1
        pair = semantic[os.path.basename(record["file_name"])]
        assert pair["file_name"] == record["file_name"]
        with Image.open(pair["sem_seg_file_name"]) as labels:
            assert (np.asarray(labels) == expected).all()


def test_registration_reads_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    register_digits_scenes(str(root))
    register_digits_scenes(str(root))
    metadata = MetadataCatalog.get("digits_scenes_val")
    assert metadata.thing_classes[3] == "digit 3"
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file.startswith(str(root))
    assert MetadataCatalog.get("digits_scenes_sem_seg_train").stuff_classes[:2] == ["background", "digit 0"]
    assert not root.exists()
    register_digits_scenes()


def test_made_on_first_use_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_scenes, "SCENES", {"train": 2, "val": 2})
    register_digits_scenes(str(tmp_path / "new" / "root"))
    first = DatasetCatalog.get("digits_scenes_train")
    stamp = os.stat(first[0]["file_name"]).st_mtime_ns
    assert DatasetCatalog.get("digits_scenes_train") == first
    assert os.stat(first[0]["file_name"]).st_mtime_ns == stamp
    assert json.loads(Path(MetadataCatalog.get("digits_scenes_val").json_file).read_text())["images"]
    monkeypatch.undo()
    register_digits_scenes()


def generate(root: str, count: int) -> None:
    digits_scenes.generate_digits_scenes(root, {"train": count, "val": 1})


def test_killed_half_way_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=generate, args=(str(tmp_path), 100_000))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/.*/images/train/*.png"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / FOLDER).exists()
    generate(str(tmp_path), 2)
    assert sorted(p.name for p in tmp_path.glob(f"{FOLDER}/images/train/*")) == ["000000.png", "000001.png"]
    assert {p.name for p in (tmp_path / FOLDER).parent.iterdir()} == {"v1", "v1.lock"}


def test_processes_at_the_same_time_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=generate, args=(str(tmp_path), 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob(f"{FOLDER}/images/train/*.png"))) == 20
    assert {p.name for p in (tmp_path / FOLDER).parent.iterdir()} == {"v1", "v1.lock"}


def test_an_unwritable_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="DETECTRON2_DATASETS"):
        digits_scenes.generate_digits_scenes(str(tmp_path / "file" / "datasets"), {"val": 1})
