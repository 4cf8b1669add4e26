"""The demo, called as on the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image
from skimage import data

from piip.engine.config import load_config
from piip.errors import ConfigError, DataError
from tests.engine.running import fail, run_tool

CONFIG = "quickstart/mask_rcnn_piip_digits.py"


@pytest.fixture(scope="module")
def demo(project):
    spec = importlib.util.spec_from_file_location("demo", project / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """A model that takes every proposal for a three."""
    torch.manual_seed(0)
    model = instantiate(load_config(CONFIG).model)
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[3:4], 5.0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(model.state_dict(), path)
    return ["model.proposal_generator.post_nms_topk=[100,10]", "--config-file", CONFIG, "--checkpoint", str(path)]


@pytest.fixture
def pictures(tmp_path) -> Path:
    for name, picture in (("a/x.png", data.astronaut()), ("b/x.png", data.chelsea())):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(picture[:96, 100:260]).save(tmp_path / name)
    return tmp_path


def test_pictures_and_records(demo, arguments, pictures, capsys):
    out = pictures / "out"
    status = demo.main(
        [*arguments, "--input", str(pictures / "a"), str(pictures / "b" / "*.png"), "--output", str(out), "--json",
         "train.device=cpu"]
    )  # fmt: skip
    assert status == 0
    assert sorted(p.name for p in out.iterdir()) == ["predictions.json", "x.png", "x_2.png"]
    records = json.loads((out / "predictions.json").read_text())
    for number, (source, target) in enumerate([("a/x.png", "x.png"), ("b/x.png", "x_2.png")]):
        before, after = (Image.open(pictures / p) for p in (source, f"out/{target}"))
        assert after.size == (800, 480)  # enlarged for the labels
        assert not np.array_equal(np.asarray(before.resize(after.size)), np.asarray(after))
        mine = [r for r in records if r["image_id"] == number]
        assert 0 < len(mine) <= 10
        assert {r["file_name"] for r in mine} == {str(pictures / source)}
        record = mine[0]
        assert mask_util.decode(record["segmentation"]).shape == (96, 160)
        assert (record["category"], record["category_id"]) == ("digit 3", 4)  # ids of the dataset start at 1
        assert 0.5 <= record["score"] <= 1
        x, y, width, height = record["bbox"]
        assert 0 <= x <= x + width <= 160
        assert 0 <= y <= y + height <= 96
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"[1/2] {pictures}/a/x.png: 160x96, ")
    assert " objects (" in printed[0]
    assert printed[-1].startswith(f"2 pictures, {len(records)} objects (")
    assert ", 0 of 2 inputs failed; " in printed[-1]
    assert "img/s" in printed[-1]


def test_a_broken_picture_is_skipped_and_counted(demo, arguments, pictures, capsys):
    (pictures / "a" / "broken.jpg").write_text("no picture")
    status = demo.main([*arguments, "--input", str(pictures / "a"), "--output", str(pictures / "out")])
    assert status == 1
    assert [p.name for p in (pictures / "out").iterdir()] == ["x.png"]
    printed = capsys.readouterr()
    assert "broken.jpg' cannot be read" in printed.err
    assert "1 of 2 inputs failed" in printed.out


def test_videos(demo, arguments, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2", reason='not installed: pip install "piip[demo]"')
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for _ in range(2):
        writer.write(np.ascontiguousarray(data.astronaut()[:64, 200:296, ::-1]))
    writer.release()
    out = tmp_path / "out"
    assert demo.main([*arguments, "--input", str(tmp_path / "clip.avi"), "--output", str(out), "--json"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["clip.mp4", "predictions.json"]
    assert {r["frame"] for r in json.loads((out / "predictions.json").read_text())} == {0, 1}
    assert "2 frames, " in capsys.readouterr().out


def test_a_segmentor_labels_pixels(demo, pictures, capsys):
    config = ["--config-file", "quickstart/semantic_fpn_piip_digits.py", "train.device=cpu"]
    out = pictures / "out"
    assert demo.main([*config, "--input", str(pictures / "a"), "--output", str(out), "--json"]) == 0
    records = json.loads((out / "predictions.json").read_text())
    assert sum(mask_util.area(r["segmentation"]) for r in records) == 96 * 160  # every pixel has one class
    assert {r["category"] for r in records} <= {"background", *(f"digit {i}" for i in range(10))}
    with Image.open(out / "x.png") as picture:
        assert picture.size == (800, 480)
    assert " % " in capsys.readouterr().out.splitlines()[0]


def test_outputs_beside_the_inputs_leave_them_alone(demo, arguments, pictures):
    before = (pictures / "a" / "x.png").read_bytes()
    assert demo.main([*arguments, "--input", str(pictures / "a" / "x.png"), "--output", str(pictures / "a")]) == 0
    assert (pictures / "a" / "x.png").read_bytes() == before
    assert (pictures / "a" / "x_2.png").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], DataError, "nothing to look at"),
        (["--input", "no/such.png"], DataError, "no/such.png"),
        (["--input", "no/*.png"], DataError, "matches no file"),
        (["--samples", "model.backbon.out_channels=3"], ConfigError, "model.backbone"),
        (["--samples", "--config-file", "quickstart/digits"], ConfigError, "mask_rcnn_piip_digits"),
        (["--samples", "--score-threshold", "2"], ConfigError, "between 0 and 1"),
    ],
)
def test_bad_input(demo, arguments, tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        demo.main([*arguments, "--output", str(tmp_path), *given])


def test_overrides_may_follow_the_inputs(demo):
    args = demo.parse_args(["--config-file", "c", "--input", "a.png", "b.png", "train.device=cpu"])
    assert (args.input, args.overrides) == (["a.png", "b.png"], ["train.device=cpu"])
    args = demo.parse_args(["--config-file", "c", "--input", "a.png", "--json", "train.device=cpu", "model.x=[1,2]"])
    assert (args.input, args.overrides) == (["a.png"], ["train.device=cpu", "model.x=[1,2]"])


def test_as_a_program(project, arguments, tmp_path):
    """In a process of its own, on a photograph of scikit-image; then with an error of the user."""
    tool, arguments = project / "tools" / "demo.py", [*arguments, "--output", str(tmp_path)]
    done = run_tool(*arguments, "--input", "skimage:chelsea", script=tool)
    assert done.status == 0, done.output
    assert np.asarray(Image.open(tmp_path / "chelsea.png")).shape == data.chelsea().shape
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "chelsea.png")), data.chelsea())
    assert "Traceback" not in done.output
    message = fail(*arguments, "--input", "nothing.png", script=tool)
    assert message.startswith("error: input 'nothing.png' does not exist")
