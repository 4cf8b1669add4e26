"""Pictures with label maps: one's own, ADE20K as distributed, the mapper, and what can be wrong with them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from piip.data import SemanticMapper, get_sem_seg_dicts, register_sem_seg, sem_seg_dataset
from piip.data.datasets.ade20k import prepare_ade20k
from piip.data.datasets.sem_seg import read_labels
from piip.errors import ConfigError, DataError

CLASSES = ["road", "car", "sky"]


def save(path: Path, array: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four pictures of 40 x 30 pixels, of several formats, with their label maps."""
    rng = np.random.default_rng(0)
    for i, suffix in enumerate((".jpg", ".png", ".JPEG", ".png")):
        save(tmp_path / "images" / f"{i}{suffix}", rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        labels = rng.integers(0, 3, (30, 40), dtype=np.uint8)
        labels[:5] = 255
        save(tmp_path / "labels" / f"{i}.png", labels)
    (tmp_path / "images" / "notes.txt").write_text("not a picture")
    return tmp_path


def dicts(folders: Path) -> list[dict]:
    return sem_seg_dataset("own", folders / "images", folders / "labels", CLASSES)


def mapper(**changes) -> SemanticMapper:
    return SemanticMapper(**{"is_train": True, "augmentations": [], "image_format": "RGB", "num_classes": 3, **changes})


def test_pictures_and_label_maps_are_paired_by_name(folders: Path) -> None:
    found = dicts(folders)
    assert [Path(d["file_name"]).name for d in found] == ["0.jpg", "1.png", "2.JPEG", "3.png"]
    assert [Path(d["sem_seg_file_name"]).name for d in found] == ["0.png", "1.png", "2.png", "3.png"]
    metadata = MetadataCatalog.get("own")
    assert (metadata.stuff_classes, metadata.ignore_label) == (CLASSES, 255)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "labels/2.png").unlink(), r"'own' lacks a label map in '.*labels' for 1 names: '2'"),
        (lambda f: (f / "images/1.png").unlink(), r"'own' lacks a picture in '.*images' for 1 names: '1'"),
        (
            lambda f: (f / "labels").rename(f / "masks"),
            r"labels of dataset 'own' are missing: there is no folder '.*labels'",
        ),
        (lambda f: [p.unlink() for p in (f / "labels").iterdir()], r"labels' of dataset 'own' holds no .png files"),
        (lambda f: (f / "images/1.png").rename(f / "images/0.png"), r"two files of the name '0' in '.*images'"),
    ],
)
def test_folders_that_do_not_go_together(folders: Path, damage, message: str) -> None:
    damage(folders)
    with pytest.raises(DataError, match=message):
        dicts(folders)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: [save(f / f"labels/{i}.png", np.full((30, 40), 7, np.uint8)) for i in (1, 3)],
            r"^2 of the 4 pictures .* dataset 'own' cannot be used. The label map '.*labels/1.png' has the values 7, "
            r"but there are 3 classes.* mistake is in '.*images/3.png'.$",
        ),
        (
            lambda f: save(f / "labels/2.png", np.zeros((30, 41), np.uint8)),
            r"^1 of the 4 .* Label map '.*labels/2.png' is 41x30 pixels .* image '.*images/2.JPEG' is 40x30; correct",
        ),
        (lambda f: (f / "images/0.jpg").write_bytes(b"?"), r"picture '.*images/0.jpg' cannot be read \(it is no pic"),
        (lambda f: (f / "labels/0.png").write_bytes(b"?"), r"label map '.*labels/0.png' cannot be read \(Unident"),
    ],
)
def test_what_is_in_the_files_is_known_before_a_training(folders: Path, damage, message: str) -> None:
    damage(folders)
    with pytest.raises(DataError, match=message):
        dicts(folders)
    assert len(sem_seg_dataset("own", folders / "images", folders / "labels", CLASSES, check_files=False)) == 4


def test_other_classes_of_the_same_folders(folders: Path) -> None:
    dicts(folders)
    assert len(sem_seg_dataset("own", folders / "images", folders / "labels", [*CLASSES, "tree"])) == 4
    assert MetadataCatalog.get("own").stuff_classes == [*CLASSES, "tree"]


def test_pictures_that_lie_on_their_side(folders: Path) -> None:
    """Cameras store how to turn a picture; it is read upright, as its label map was drawn."""
    picture = Image.fromarray(np.zeros((40, 30, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folders / "images" / "0.jpg", exif=exif)
    assert mapper()(dicts(folders)[0])["image"].shape == (3, 30, 40)


@pytest.mark.parametrize("classes", [[], "road", ["a", "a"]])
def test_classes_that_are_none(classes) -> None:
    with pytest.raises(ConfigError, match="must be a list of different names"):
        register_sem_seg("own", "images", "labels", classes)


def test_unknown_names_and_datasets_without_labels(digits: str) -> None:
    with pytest.raises(DataError, match=r"no dataset 'digits_scenes_sem_seg_trai'.* Did you mean"):
        get_sem_seg_dicts("digits_scenes_sem_seg_trai")
    with pytest.raises(DataError, match="'digits_scenes_val' has no label maps"):
        get_sem_seg_dicts("digits_scenes_val")


def test_labels_of_a_palette_are_its_indices(tmp_path: Path) -> None:
    labels = np.arange(3, dtype=np.uint8).repeat(8).reshape(4, 6)
    image = Image.fromarray(labels)
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    image.save(tmp_path / "palette.png")
    assert image.mode == "P"
    assert np.array_equal(read_labels(str(tmp_path / "palette.png"), 3), labels)


def test_more_classes_than_a_byte_holds(tmp_path: Path) -> None:
    labels = np.array([[0, 300], [299, 255]], dtype=np.uint16)
    path = save(tmp_path / "deep.png", labels)
    assert np.array_equal(read_labels(path, 301), labels)
    with pytest.raises(DataError, match=r"values 300, but there are 300 classes, 0 to 299"):
        read_labels(path, 300)


def test_label_maps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*none.png' does not exist"):
        read_labels(str(tmp_path / "none.png"), 3)
    (tmp_path / "text.png").write_text("<html>")
    with pytest.raises(DataError, match=r"'.*text.png' cannot be read"):
        read_labels(str(tmp_path / "text.png"), 3)
    with pytest.raises(DataError, match="has 3 channels; it must have one"):
        read_labels(save(tmp_path / "rgb.png", np.zeros((4, 4, 3), np.uint8)), 3)


def test_mapper_moves_picture_and_labels_together(folders: Path) -> None:
    record = dicts(folders)[1]
    picture, labels = (np.asarray(Image.open(record[key])) for key in ("file_name", "sem_seg_file_name"))
    sample = mapper(augmentations=[T.RandomFlip(1.0), T.CropTransform(4, 2, 20, 10)])(record)
    assert np.array_equal(sample["image"].numpy().transpose(1, 2, 0), picture[:, ::-1][2:12, 4:24])
    assert np.array_equal(sample["sem_seg"].numpy(), labels[:, ::-1][2:12, 4:24])
    assert sample["sem_seg"].dtype == torch.long
    assert record == dicts(folders)[1]


def test_mapper_of_tests_checks_labels_and_leaves_them_to_the_evaluator(folders: Path) -> None:
    record = dicts(folders)[0]
    sample = mapper(is_train=False)(record)
    assert set(sample) == {"file_name", "image", "height", "width"}
    with pytest.raises(DataError, match=r"0.png' has the values 2, but there are 2 classes"):
        mapper(is_train=False, num_classes=2)(record)
    assert "image" in mapper(is_train=False)({"file_name": record["file_name"]})


def test_mapper_of_tests_keeps_the_picture_that_it_resized(folders: Path) -> None:
    record = dicts(folders)[1]
    picture = np.asarray(Image.open(record["file_name"]))
    sample = mapper(is_train=False, augmentations=[T.ResizeShortestEdge(15), T.NoOpTransform()])(record)
    assert sample["image"].shape == (3, 15, 20)
    assert np.array_equal(sample["original"].numpy().transpose(1, 2, 0), picture)
    assert "original" not in mapper(is_train=False, augmentations=[T.ResizeShortestEdge(15), T.RandomFlip(1.0)])(record)
    assert "original" not in mapper(augmentations=[T.ResizeShortestEdge(15)])(record)


def test_mapper_names_what_is_wrong(folders: Path) -> None:
    record = dicts(folders)[1]
    save(folders / "labels/1.png", np.zeros((30, 41), np.uint8))
    with pytest.raises(DataError, match=r"Label map '.*labels/1.png' is 41x30 pixels .* its image '.*1.png' is 40x30"):
        mapper()(record)
    save(folders / "labels/1.png", np.full((30, 40), 7, np.uint8))
    with pytest.raises(DataError, match=r"labels/1.png' has the values 7, but there are 3 classes, 0 to 2, and 255"):
        mapper()(record)
    with pytest.raises(DataError, match="has no label map to learn from"):
        mapper()({"file_name": record["file_name"]})
    Path(record["file_name"]).unlink()
    with pytest.raises(DataError, match=r"image '.*images/1.png' does not exist"):
        mapper()(record)


def test_mapper_keeps_instances_for_panoptic_models(digits: str) -> None:
    record = DatasetCatalog.get("digits_scenes_val")[0]
    record["sem_seg_file_name"] = DatasetCatalog.get("digits_scenes_sem_seg_val")[0]["sem_seg_file_name"]
    sample = mapper(num_classes=11, use_instance_mask=True, instance_mask_format="bitmask")(record)
    masks = sample["instances"].gt_masks.tensor
    for mask, category in zip(masks, sample["instances"].gt_classes, strict=True):
        assert (sample["sem_seg"][mask] == category + 1).all()
    assert (sample["sem_seg"][~masks.any(0)] == 0).all()


@pytest.fixture
def ade20k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ADE20K as distributed, with two pictures per split, under the usual names."""
    root = tmp_path / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for i in range(2):
            save(root / "images" / split / f"{i}.jpg", rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
            save(root / "annotations" / split / f"{i}.png", rng.integers(0, 151, (60, 90), dtype=np.uint8))
    from detectron2.data.datasets.builtin import register_all_ade20k

    names = ("ade20k_sem_seg_train", "ade20k_sem_seg_val")
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    register_all_ade20k(str(tmp_path))
    yield root
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
    register_all_ade20k("datasets")


def test_ade20k_is_renumbered_on_first_use(ade20k: Path) -> None:
    found = get_sem_seg_dicts("ade20k_sem_seg_val")
    assert len(found) == 2
    for record in found:
        path = Path(record["sem_seg_file_name"])
        assert path.parent == ade20k / "annotations_detectron2/validation"
        before = np.asarray(Image.open(ade20k / "annotations/validation" / path.name)).astype(int)
        assert np.array_equal(read_labels(str(path), 150), np.where(before == 0, 255, before - 1))
    assert not (ade20k / "annotations_detectron2/training").exists()
    # What is there stays as it is.
    save(ade20k / "annotations/validation/0.png", np.zeros((60, 90), np.uint8))
    before = path.read_bytes()
    prepare_ade20k(str(path.parent))
    assert path.read_bytes() == before


def test_ade20k_that_cannot_be_renumbered(ade20k: Path) -> None:
    save(ade20k / "annotations/training/0.png", np.zeros((60, 90, 3), np.uint8))
    with pytest.raises(DataError, match=r"training/0.png' is no grey picture"):
        get_sem_seg_dicts("ade20k_sem_seg_train")
    assert [p.name for p in (ade20k / "annotations_detectron2").iterdir() if p.is_dir()] == []


def test_ade20k_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"'ade20k_sem_seg_train' is not there.*DETECTRON2_DATASETS"):
        get_sem_seg_dicts("ade20k_sem_seg_train")


def load(project: Path, name: str, *overrides: str):
    config = LazyConfig.load(str(project / "configs/common/data" / f"{name}.py"))
    config.train = {"seed": 4, "output_dir": "nowhere"}
    workers = [f"dataloader.{part}.num_workers=0" for part in ("train", "test")]
    return LazyConfig.apply_overrides(config, [*workers, *overrides])


def test_ade20k_of_the_recipes(project: Path, ade20k: Path) -> None:
    config = load(project, "ade20k", "dataloader.train.total_batch_size=2")
    for batch in islice(instantiate(config.dataloader.train), 3):
        for sample in batch:
            assert sample["image"].shape[1:] == sample["sem_seg"].shape
            assert max(sample["sem_seg"].shape) <= 512
            assert min(sample["sem_seg"].shape) >= 256
            assert set(sample["sem_seg"].unique().tolist()) <= {*range(150), 255}
    (first, *_) = instantiate(config.dataloader.test)
    assert first[0]["image"].shape == (3, 512, 768)
    assert isinstance(instantiate(config.dataloader.evaluator), SemSegEvaluator)


def test_own_data_from_the_command_line(project: Path, folders: Path) -> None:
    fields = [f"{kind}.{split}={folders / kind}" for kind in ("images", "labels") for split in ("train", "val")]
    overrides = [f"dataloader.custom.{field}" for field in (*fields, "classes=[road,car,sky]")]
    config = load(project, "custom_sem_seg", "dataloader.train.total_batch_size=2", *overrides)
    (batch,) = islice(instantiate(config.dataloader.train), 1)
    assert len(batch) == 2
    assert instantiate(config.dataloader.train.mapper).num_classes == 3
    assert len(list(instantiate(config.dataloader.test))) == 4
    assert instantiate(config.dataloader.evaluator)._num_classes == 3


def test_cityscapes_keeps_whole_images_for_tests(project: Path) -> None:
    config = load(project, "cityscapes")
    assert instantiate(config.dataloader.test.mapper).augmentations.augs == []
    assert config.dataloader.test.mapper.num_classes == 19
    with pytest.raises(DataError, match=r"'cityscapes_fine_sem_seg_val' is not there"):
        instantiate(config.dataloader.test)
    assert len(MetadataCatalog.get("cityscapes_fine_sem_seg_train").stuff_classes) == 19
