"""Classification data: folders of pictures, pictures in memory, ImageNet's datasets; everything that can be wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from piip.data import (
    ClassificationMapper,
    build_test_loader,
    get_dataset_dicts,
    image_folder,
    image_transform,
    imagenet_synsets,
    num_folders,
    register_image_folder,
    register_imagenet,
    register_images,
)
from piip.errors import ConfigError, DataError


def picture(path: Path, value: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats, a dog in a folder below its class, and a file that is no picture by its name."""
    for name in ("cat/0.png", "cat/1.JPEG", "dog/more/2.png"):
        picture(tmp_path / "own" / name)
    (tmp_path / "own" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "own" / ".hidden").mkdir()
    return tmp_path / "own"


def load(folder: Path, classes: object = ("cat", "dog"), **options: object) -> list[dict]:
    return image_folder("own_images", str(folder), classes, **options)


def test_pictures_get_the_labels_of_their_folders(folder):
    names = [(Path(d["file_name"]).name, d["label"], d["image_id"]) for d in load(folder, ["dog", "cat"])]
    assert names == [("0.png", 1, 0), ("1.JPEG", 1, 1), ("2.png", 0, 2)]
    assert MetadataCatalog.get("own_images").thing_classes == ["dog", "cat"]
    # Also through the name, as other datasets.
    assert len(get_dataset_dicts("own_images")) == 3


def test_classes_may_be_those_of_another_folder(folder, tmp_path):
    assert num_folders(str(folder)) == num_folders(folder) == 2
    picture(tmp_path / "val" / "dog" / "x.png")
    picture(tmp_path / "val" / "cat" / "x.png")
    assert [d["label"] for d in load(tmp_path / "val", str(folder))] == [0, 1]
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        num_folders("nowhere")
    with pytest.raises(DataError, match="has no folders"):
        num_folders(str(folder / "dog" / "more"))


def test_missing_unknown_and_empty_folders_are_told(folder):
    with pytest.raises(DataError, match=r"lacks the folders of 2 of its 4 classes .*'bird', 'fish'.*subset=True"):
        load(folder, ["bird", "cat", "dog", "fish"])
    assert [d["label"] for d in load(folder, ["bird", "cat", "dog", "fish"], subset=True)] == [1, 1, 2]
    with pytest.raises(DataError, match=r"1 folders that are no class: 'dog'"):
        load(folder, ["cat"])
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match=r"no pictures in the folders of 1 classes .*'fox'"):
        load(folder, ["cat", "dog", "fox"])
    with pytest.raises(DataError, match=r"'own_images' is not there: .*nowhere"):
        load(folder / "nowhere")
    with pytest.raises(ConfigError, match="more than once: 'cat'"):
        load(folder, ["cat", "dog", "cat"])
    with pytest.raises(ConfigError, match="2 classes, but 1 class_names"):
        register_image_folder("own_images", str(folder), ["cat", "dog"], class_names=["Cat"])


def test_unreadable_pictures_are_named_counted_and_skipped_on_request(folder, caplog):
    large = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(large).save(folder / "dog" / "cut.jpg")
    whole = (folder / "dog" / "cut.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "page.png").write_text("<html>")
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of the 6 pictures .*empty\.jpg.*page\.png' \(it is no picture\).*cut\.jpg"):
        load(folder)
    with caplog.at_level(logging.WARNING, "piip"):
        assert [d["label"] for d in load(folder, skip_unreadable=True)] == [0, 0, 1]
    assert "3 of the 6 pictures" in caplog.text
    # Without the check they are met when they are drawn.
    loader = build_test_loader(load(folder, check_files=False), ClassificationMapper(image_transform(8, False)))
    with pytest.raises(DataError, match=r"empty\.jpg.* cannot be read .*skip_unreadable=True"):
        list(loader)


def test_pictures_in_memory(tmp_path):
    images = [np.zeros((6, 8), np.uint8), np.full((5, 5, 3), 7, np.uint8)]
    for _ in range(2):  # the same name may be given to other pictures
        register_images("in_memory", images, [1, 0], ["a", "b"])
        images = [image.copy() for image in images]
    found = [x for b in build_test_loader(get_dataset_dicts("in_memory"), _mapper()) for x in b]
    assert [(x["label"], tuple(x["image"].shape), x["image"].dtype) for x in found] == [
        (1, (3, 4, 4), torch.uint8),
        (0, (3, 4, 4), torch.uint8),
    ]
    assert found[1]["image"].unique().tolist() == [7]
    with pytest.raises(DataError, match="2 images and 1 labels"):
        register_images("in_memory", images, [1], ["a", "b"])
    with pytest.raises(DataError, match=r"labels \[2\], but the classes are 0 to 1"):
        register_images("in_memory", images, [1, 2], ["a", "b"])
    with pytest.raises(DataError, match=r"Image 0 .*float64"):
        register_images("in_memory", [np.zeros((4, 4))], [0], ["a"])


def _mapper() -> ClassificationMapper:
    return ClassificationMapper(image_transform(4, is_train=False, crop_pct=1.0))


def test_digits_are_all_there_and_held_out_ones_are_others():
    train, val = get_dataset_dicts("digits_train"), get_dataset_dicts("digits_val")
    assert (len(train), len(val)) == (1438, 359)
    assert not {d["image_id"] for d in train} & {d["image_id"] for d in val}
    assert {d["label"] for d in val} == set(range(10))
    assert max(d["image"].max() for d in train) == 255


def test_transform_of_the_test_resizes_and_cuts_the_middle(tmp_path):
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    sample = ClassificationMapper(image_transform(50, is_train=False, crop_pct=1.0))(
        {"file_name": str(tmp_path / "x.png"), "label": 3}
    )
    assert sample["image"].shape == (3, 50, 50)
    assert sample["image"].float().mean() > 250
    assert sample["label"] == 3
    with pytest.raises(DataError, match=r"gone\.png' does not exist"):
        _mapper()({"file_name": str(tmp_path / "gone.png")})


def test_every_augmentation_of_the_recipes_works_at_its_highest_level():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    for settings in ("rand-m10-inc1-n8", "rand-m9-mstd0.5-inc1", "v0r", "augmix-m10"):
        transform = image_transform(8, is_train=True, auto_augment=settings, interpolation="bicubic")
        for _ in range(40):
            assert transform(noise).dtype == torch.uint8


def test_what_the_model_does_is_refused_in_the_transform():
    with pytest.raises(ConfigError, match=r"re_prob=0.25, .* model\.erasing"):
        image_transform(8, is_train=True, re_prob=0.25)
    with pytest.raises(ConfigError, match="colour_jitter"):
        image_transform(8, is_train=True, colour_jitter=0.4)


@pytest.fixture
def imagenet(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_imagenet()
    yield tmp_path
    monkeypatch.undo()
    register_imagenet()


def test_imagenet_by_its_synsets(imagenet):
    synsets = imagenet_synsets()
    assert (len(synsets), synsets[0]) == (1000, "n01440764")
    picture(imagenet / "imagenet-r" / synsets[7] / "a.jpg")
    picture(imagenet / "imagenet-r" / synsets[990] / "b.jpg")
    assert [d["label"] for d in get_dataset_dicts("imagenet_r")] == [7, 990]
    assert MetadataCatalog.get("imagenet_r").thing_classes[0] == "tench"
    for name in synsets[1:]:
        (imagenet / "imagenet" / "val" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"lacks the folders of 1 of its 1000 classes .*'n01440764'"):
        get_dataset_dicts("imagenet_val")
    with pytest.raises(DataError, match=r"'imagenet_sketch' is not there"):
        get_dataset_dicts("imagenet_sketch")


def test_corruptions_and_severities_are_told_apart(imagenet):
    from piip.data.datasets.imagenet import CORRUPTIONS, register_corruptions

    classes, root = ["n1", "n2"], imagenet / "small-c"
    register_corruptions("small_c", str(root), classes, classes)
    with pytest.raises(DataError, match="'small_c' is not there"):
        DatasetCatalog.get("small_c")
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            for name in classes:
                picture(root / corruption / str(severity) / name / "0.png")
    dicts = DatasetCatalog.get("small_c")
    assert [d["image_id"] for d in dicts] == list(range(150))
    assert {(d["corruption"], d["severity"], d["label"]) for d in dicts} == {
        (c, s, y) for c in CORRUPTIONS for s in range(1, 6) for y in range(2)
    }
    (root / "snow").rename(root / "snoww")
    with pytest.raises(DataError, match=r"lacks 5 of its 75 folders .*'snow/1'.*Did you mean 'snoww'"):
        DatasetCatalog.get("small_c")
