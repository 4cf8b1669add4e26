"""Finding pictures and naming what is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.errors import DataError
from piip.visualization.inputs import SAMPLES, find_sources, output_paths, read_picture


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/a.jpg"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    (tmp_path / "clip.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_folders_patterns_and_files(folder):
    def names(*given: str) -> list[str]:
        return [s.path.relative_to(folder).as_posix() for s in find_sources([str(folder / g) for g in given])]

    assert names("") == ["a.jpg", "b.png", "clip.mp4"]
    assert names("*.jpg") == ["a.jpg"]
    assert names("**/*.jpg") == ["a.jpg", "sub/a.jpg"]
    assert names("b.png", "", "sub") == ["b.png", "a.jpg", "clip.mp4", "sub/a.jpg"]
    assert [s.is_video for s in find_sources([str(folder)])] == [False, False, True]


def test_a_file_with_pattern_characters_is_itself(folder):
    Image.new("RGB", (8, 6)).save(folder / "a[1].png")
    assert [s.path.name for s in find_sources([str(folder / "a[1].png")])] == ["a[1].png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("*.gif", "matches no file"),
        ("b.jpeg", r"does not exist.*Did you mean 'b\.png'"),
        ("nowhere/b.png", "does not exist"),
    ],
)
def test_names_that_stand_for_nothing(folder, name, words):
    with pytest.raises(DataError, match=words):
        find_sources([str(folder / name)])


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        find_sources([str(tmp_path)])


def test_samples_are_photographs():
    sources = find_sources([f"skimage:{name}" for name in SAMPLES])
    assert [s.name for s in sources] == [f"skimage:{name}" for name in SAMPLES]
    for source in sources:
        assert min(read_picture(source.path).shape[:2]) >= 300
    with pytest.raises(DataError, match="try one of astronaut"):
        find_sources(["skimage:mona_lisa"])


def test_pictures_of_every_mode_become_rgb(tmp_path):
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (8, 6)).save(tmp_path / f"{mode}.{suffix}")
        picture = read_picture(tmp_path / f"{mode}.{suffix}")
        assert picture.shape == (6, 8, 3)
        assert picture.dtype == np.uint8


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (8, 6, 3)


@pytest.mark.parametrize("kind", ["text", "truncated", "missing"])
def test_broken_pictures_are_named(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.png' cannot be read"):
        read_picture(path)


def test_outputs_never_meet(folder, tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    sources = find_sources([str(folder), str(folder / "sub")])
    paths = output_paths(sources, out)
    assert [p.name for p in paths] == ["a.jpg", "a.png", "b.png", "clip.mp4", "a_2.jpg"]
    beside = output_paths(sources, folder)
    assert not {p.resolve() for p in beside} & {s.path.resolve() for s in sources}
    assert len(set(beside)) == len(sources)


def test_other_formats_become_jpeg(folder):
    Image.new("RGB", (8, 6)).save(folder / "c.webp")
    assert output_paths(find_sources([str(folder / "c.webp")]), folder)[0].name == "c.jpg"
