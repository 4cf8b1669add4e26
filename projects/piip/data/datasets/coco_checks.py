"""What can be wrong with a COCO file that somebody made, each told in one sentence."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.utils.file_io import PathManager

from ...errors import DataError

__all__ = ["check_content", "check_files", "quote", "read_json"]


def quote(names: Iterable[Any], limit: int = 5) -> str:
    """The first ``limit`` names in quotes, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def read_json(name: str, json_file: str) -> dict:
    """The content of an annotation file.

    Raises:
        DataError: if it is missing or not JSON.
    """
    if not PathManager.isfile(json_file):
        raise DataError(
            f"The annotations of dataset {name!r} are missing: there is no file {os.path.abspath(json_file)!r}; "
            "correct the path 'json'."
        )
    try:
        with PathManager.open(json_file, "r") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"The annotations {json_file!r} of dataset {name!r} are not valid JSON ({error}); export them again."
        ) from error
    return content


def check_content(name: str, json_file: str, content: Any, classes: Sequence[str]) -> None:
    """Checks the records of an annotation file against each other and against the expected classes.

    Raises:
        DataError: for the first thing that is wrong.
    """
    where = f"{json_file!r} of dataset {name!r}"
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"The file {where} is not in COCO's instance format: it has no list {key!r}.")
    images = _by_id(content["images"], "image", ("file_name", "width", "height"), where)
    categories = _by_id(content["categories"], "category", ("name",), where)
    annotations = _by_id(content["annotations"], "annotation", ("image_id", "category_id", "bbox"), where)
    if not images:
        raise DataError(f"The file {where} lists no images.")
    _check_classes([categories[i]["name"] for i in sorted(categories)], list(classes), where)
    for number, annotation in annotations.items():
        for key, known, kind in (("image_id", images, "image"), ("category_id", categories, "category")):
            if annotation[key] not in known:
                raise DataError(
                    f"Annotation {number} in {where} points to the unknown {kind} {annotation[key]!r}; "
                    f"add that {kind} or remove the annotation."
                )
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
            raise DataError(f"Annotation {number} in {where} has the bbox {box!r} instead of [x, y, width, height].")


def _by_id(records: list, kind: str, keys: tuple[str, ...], where: str) -> dict[int, dict]:
    """The records by their ids, which are there, and unique, as are the other keys that they need."""
    found: dict[int, dict] = {}
    for position, record in enumerate(records):
        missing = [key for key in ("id", *keys) if not isinstance(record, dict) or key not in record]
        if missing:
            raise DataError(f"The {kind} at position {position} in {where} has no {quote(missing)}.")
        if record["id"] in found:
            raise DataError(f"Two records of kind {kind} in {where} have the id {record['id']!r}; make them unique.")
        found[record["id"]] = record
    return found


def _check_classes(found: list[str], given: list[str], where: str) -> None:
    if found == given:
        return
    if sorted(found) == sorted(given):
        raise DataError(
            f"The classes are given in another order than their category ids in {where}; give them as [{quote(found)}]."
        )
    absent = [c for c in given if c not in found]
    extra = [c for c in found if c not in given]
    differences = [f"{quote(absent)} not in the file" if absent else "", f"{quote(extra)} not given" if extra else ""]
    raise DataError(
        f"The classes given ({len(given)}: {quote(given)}) are not the categories ({len(found)}: {quote(found)}) "
        f"in {where}: {'; '.join(filter(None, differences)) or 'a name is repeated'}."
    )


def check_files(name: str, image_root: str, file_names: Sequence[str]) -> None:
    """Checks that the images are where they should be: one listing per folder, no image is opened.

    Raises:
        DataError: if the folder is missing or empty, or some images are not in it.
    """
    if not PathManager.isdir(image_root):
        raise DataError(
            f"The images of dataset {name!r} are missing: there is no folder {os.path.abspath(image_root)!r}; "
            "correct the path 'images'."
        )
    folders: dict[str, set[str]] = defaultdict(set)
    for file_name in file_names:
        folder, base = os.path.split(os.path.join(image_root, file_name))
        folders[folder].add(base)
    absent: list[str] = []
    for folder, expected in folders.items():
        present = set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()
        absent += [os.path.join(folder, base) for base in expected - present]
    if absent:
        first = quote((os.path.relpath(path, image_root) for path in sorted(absent)), limit=3)
        raise DataError(
            f"{len(absent)} of {len(set(file_names))} images of dataset {name!r} are missing under {image_root!r}: "
            f"{first}; add them, or correct the path 'images'."
        )
