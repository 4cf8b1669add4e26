"""Datasets of one's own, datasets by name, and every way in which they can be wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from piip.data import check_categories, check_masks, coco_dataset, get_dataset_dicts, num_classes, register_coco
from piip.errors import ConfigError, DataError


def load(own_data, **changes):
    fields = {"json_file": own_data.json, "image_root": own_data.images, "classes": own_data.classes} | changes
    return coco_dataset("own", **fields)


def test_own_data_load(own_data) -> None:
    dicts = load(own_data)
    assert [os.path.basename(d["file_name"]) for d in dicts] == ["0.png", "1.png", "2.png", "3.png"]
    assert [d["annotations"][0]["category_id"] for d in dicts] == [1, 0, 1, 0]  # ids 7 and 3, in order of ids
    assert MetadataCatalog.get("own").thing_classes == ["cat", "dog"]
    assert num_classes(MetadataCatalog.get("own").thing_classes) == 2


def test_registration_reads_no_file_and_can_be_repeated(own_data) -> None:
    register_coco("own", "nowhere.json", "nowhere", ["a"])
    register_coco("own", own_data.json, own_data.images, own_data.classes)
    assert MetadataCatalog.get("own").json_file == own_data.json
    get_dataset_dicts("own")
    register_coco("own", own_data.json, own_data.images, own_data.classes)
    assert MetadataCatalog.get("own").thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}  # kept from loading


def test_names_of_others_are_not_taken(own_data) -> None:
    for name in ("coco_2017_train", "digits_scenes_train"):
        with pytest.raises(ConfigError, match=f"'{name}' is taken"):
            register_coco(name, own_data.json, own_data.images, own_data.classes)


@pytest.mark.parametrize("classes", [[], "cat", ["cat", "cat"]])
def test_classes_must_be_a_list_of_names(own_data, classes) -> None:
    with pytest.raises(ConfigError, match="must be a list of different names"):
        load(own_data, classes=classes)


def test_images_without_objects(own_data) -> None:
    del own_data.content["annotations"][1]
    own_data.write()
    assert len(load(own_data)) == 3
    assert len(load(own_data, filter_empty=False)) == 4
    own_data.content["annotations"].clear()
    own_data.write()
    with pytest.raises(DataError, match="'own' cannot be used"):
        load(own_data)


def test_missing_files(own_data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file '.*absent.json'.*'json'"):
        load(own_data, json_file=str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match=r"no folder '.*absent'.*'images'"):
        load(own_data, image_root=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="4 of 4 images"):
        load(own_data, image_root=str(tmp_path / "empty"))
    os.remove(os.path.join(own_data.images, "2.png"))
    with pytest.raises(DataError, match=r"1 of 4 images .*: '2.png'; add them"):
        load(own_data)


def test_images_in_folders(own_data) -> None:
    os.makedirs(os.path.join(own_data.images, "a", "b"))
    shutil.move(os.path.join(own_data.images, "0.png"), os.path.join(own_data.images, "a", "b", "0.png"))
    own_data.content["images"][0]["file_name"] = "a/b/0.png"
    own_data.write()
    assert len(load(own_data)) == 4
    shutil.rmtree(os.path.join(own_data.images, "a"))
    with pytest.raises(DataError, match=r"1 of 4 images .*: 'a/b/0.png'"):
        load(own_data)


BROKEN = {
    "unknown image": (lambda c: c["annotations"][1].update(image_id=99), "Annotation 2 .* unknown image 99"),
    "unknown category": (lambda c: c["annotations"][1].update(category_id=5), "Annotation 2 .* unknown category 5"),
    "no boxes": (lambda c: c["annotations"][2].pop("bbox"), "annotation at position 2 .* has no 'bbox'"),
    "short box": (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"Annotation 1 .* bbox \[1, 2\]"),
    "repeated image": (lambda c: c["images"][1].update(id=0), "Two records of kind image .* id 0"),
    "repeated annotation": (lambda c: c["annotations"][1].update(id=1), "Two records of kind annotation .* id 1"),
    "no sizes": (lambda c: c["images"][3].pop("width"), "image at position 3 .* has no 'width'"),
    "no images": (lambda c: (c["images"].clear(), c["annotations"].clear()), "lists no images"),
    "no record": (lambda c: c["images"].append("4.png"), "image at position 4 .* has no 'id', 'file_name'"),
    "no list": (lambda c: c.pop("categories"), "has no list 'categories'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_inconsistent_annotations(own_data, name: str) -> None:
    spoil, message = BROKEN[name]
    spoil(own_data.content)
    own_data.write()
    with pytest.raises(DataError, match=message):
        load(own_data)


@pytest.mark.parametrize("text", ['{"images": [', "\x00\x01", "[]"])
def test_annotations_that_are_not_coco(own_data, text: str) -> None:
    Path(own_data.json).write_text(text)
    with pytest.raises(DataError, match=r"not valid JSON|not in COCO's instance format"):
        load(own_data)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "cow"], "'cow' not in the file; 'dog' not given"),
        (["cat"], r"given \(1: 'cat'\) are not the categories \(2: 'cat', 'dog'\) .* 'dog' not given"),
        (["dog", "cat"], r"another order .* give them as \['cat', 'dog'\]"),
    ],
)
def test_classes_that_disagree(own_data, classes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(own_data, classes=classes)


def test_many_classes_are_told_shortly(own_data) -> None:
    with pytest.raises(DataError) as caught:
        load(own_data, classes=[f"class {i}" for i in range(500)])
    assert "and 495 more" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(DataError, match=r"no dataset 'coco_2017_trian'.*'coco_2017_train'"):
        get_dataset_dicts("coco_2017_trian")
    with pytest.raises(ConfigError, match="No dataset"):
        get_dataset_dicts([])


def test_coco_that_is_not_there_tells_where_it_was_sought() -> None:
    with pytest.raises(DataError) as caught:
        get_dataset_dicts(["coco_2017_train", "coco_2017_val"])
    assert "instances_train2017.json" in str(caught.value)
    assert "DETECTRON2_DATASETS" in str(caught.value)


def test_missing_image_folder_of_a_standard_dataset(own_data, tmp_path: Path) -> None:
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("standard", {}, own_data.json, str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"'standard' is not there: '.*gone'"):
        get_dataset_dicts("standard")


def test_datasets_of_others_are_joined_and_explained(own_data) -> None:
    load(own_data)
    DatasetCatalog.register("others", lambda: [{"file_name": "x", "annotations": [{"category_id": 0}]}])
    assert len(get_dataset_dicts(["own", "others"])) == 5
    DatasetCatalog.register("nothing", list)
    with pytest.raises(DataError, match="'nothing' cannot be used"):
        get_dataset_dicts("nothing")
    DatasetCatalog.register("gone", lambda: Path("/gone/annotations.txt").read_text())
    with pytest.raises(DataError, match=r"'gone' is not there: '/gone/annotations.txt'"):
        get_dataset_dicts("gone")


def test_categories_and_model(own_data) -> None:
    load(own_data)
    check_categories("own", 2)
    check_categories("digits_scenes_sem_seg_val", 10)  # has no objects
    with pytest.raises(DataError, match=r"'own' has 2 categories \('cat', 'dog'\), but the model predicts 80"):
        check_categories(["own"], 80)


def test_masks_for_a_mask_head(own_data) -> None:
    check_masks(load(own_data), "own")
    own_data.content["annotations"][2]["segmentation"] = []
    own_data.write()
    dicts = load(own_data)
    with pytest.raises(DataError, match=r"2.png' of dataset 'own' .* mask head.*use_instance_mask=False"):
        check_masks(dicts, "own")
    dicts[2]["annotations"][0]["iscrowd"] = 1  # left out of training
    check_masks(dicts)
