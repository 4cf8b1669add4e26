"""tools/install_detectron2.py: the wheel that it builds, what it keeps, and what it refuses."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


def run_tool(*args: str, python: str | Path = sys.executable, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), str(TOOL), *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    ran = run_tool("--wheel-dir", str(tmp_path_factory.mktemp("wheel")))
    if "(from versions: none)" in ran.stderr:  # pip's words where it reaches no index
        pytest.skip(f"pip reaches no package index with Detectron2's sources: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.strip())


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_is_complete_and_its_record_true(wheel):
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = list(csv.reader(archive.read("detectron2-0.6.dist-info/RECORD").decode().splitlines()))
        assert [row[0] for row in record] == names
        for name, digest, size in record[:-1]:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(data)), name
    assert len([name for name in names if name.startswith("detectron2/model_zoo/configs/")]) == 128
    for name in (
        "projects/point_rend/__init__.py",
        "projects/deeplab/__init__.py",
        "modeling/backbone/fpn.py",
        "_C.py",
    ):
        assert f"detectron2/{name}" in names
    assert "detectron2-0.6.dist-info/licenses/LICENSE" in names


def test_wheel_metadata(unpacked):
    metadata = (unpacked / "detectron2-0.6.dist-info" / "METADATA").read_text()
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert "Name: detectron2\nVersion: 0.6\n" in metadata
    assert {"fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<0.1.10", "omegaconf>=2.1,<2.4", "torch>=1.8"} <= set(required)
    assert not [r for r in required if r.startswith(("black", "future", "pydot"))]
    assert "Tag: py3-none-any" in (unpacked / "detectron2-0.6.dist-info" / "WHEEL").read_text()


def test_wheel_has_the_edits(unpacked, installer):
    code = {p.relative_to(unpacked).as_posix(): p.read_text("utf-8") for p in unpacked.rglob("*.py")}
    removed = re.compile(r"\bnp\.(bool|int|float|str)\b|Image\.LINEAR\b|import pkg_resources|torch\.ops\.detectron2")
    assert not [path for path, text in code.items() if removed.search(text)]
    for path in {edit.path for edit in installer.EDITS}:
        assert code[f"detectron2/{path}"].startswith("# Changed for piip by"), path
    unedited = code["detectron2/modeling/backbone/fpn.py"]
    assert unedited.startswith("# Copyright")


def test_same_files_give_the_same_bytes(wheel, unpacked, installer, tmp_path):
    own = {"METADATA", "WHEEL", "RECORD", "top_level.txt"}
    files = {p.relative_to(unpacked).as_posix(): p.read_bytes() for p in unpacked.rglob("*") if p.is_file()}
    files = {path: data for path, data in files.items() if Path(path).name not in own}
    shuffled = dict(reversed(files.items()))
    assert installer.write_wheel(shuffled, tmp_path).read_bytes() == wheel.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [wheel.name]


def test_wheel_works(unpacked, tmp_path):
    """Imports the unpacked wheel instead of any installed Detectron2 and uses each part that an edit concerns."""
    script = tmp_path / "use.py"
    script.write_text(USE_WHEEL)
    ran = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", str(script), str(unpacked)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "torch.meshgrid" not in ran.stderr  # it warned about its argument


USE_WHEEL = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
import detectron2
from detectron2 import _C, model_zoo
assert detectron2.__file__.startswith(sys.argv[1]), detectron2.__file__
assert not _C.has_cuda() and _C.get_cuda_version() == "not available" and "pure" in _C.get_compiler_version()

from detectron2.layers import nms_rotated, roi_align_rotated
from detectron2.layers.mask_ops import paste_masks_in_image, paste_mask_in_image_old
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
boxes, scores = torch.rand(3, 5), torch.rand(3)
for call in (
    lambda: nms_rotated(boxes, scores, 0.5),
    lambda: pairwise_iou_rotated(boxes, boxes),
    lambda: roi_align_rotated(torch.rand(1, 1, 8, 8), torch.rand(2, 6), (2, 2), 1.0, 2),
    lambda: _C.deform_conv_forward(),
):
    try:
        call()
    except NotImplementedError as error:
        assert "--source git" in str(error) and "pure-Python build" in str(error), error
    else:
        raise AssertionError("no error")

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.analysis import FlopCountAnalysis
for name in ("COCO-Detection/fcos_R_50_FPN_1x.py", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"):
    config = model_zoo.get_config(name)
    model = instantiate(config.model).eval()
with torch.no_grad():
    model([{"image": torch.zeros(3, 64, 64)}])
assert "BASE" in open(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")).read().upper()

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
coco = {"info": {}, "images": [{"id": 1, "height": 40, "width": 50, "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0,
                         "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]}]}
folder = os.path.dirname(os.path.abspath(__file__))
json.dump(coco, open(os.path.join(folder, "coco.json"), "w"))
from detectron2.data.datasets import register_coco_instances
register_coco_instances("one", {}, os.path.join(folder, "coco.json"), folder)
DatasetCatalog.get("one")
evaluator = COCOEvaluator("one", output_dir=folder)
evaluator.reset()
found = Instances((40, 50), pred_boxes=Boxes(torch.tensor([[5.0, 5, 25, 15]])), scores=torch.ones(1),
                  pred_classes=torch.zeros(1, dtype=torch.int64))
mask = torch.zeros(1, 40, 50, dtype=torch.bool)
mask[:, 5:15, 5:25] = True
found.pred_masks = mask
evaluator.process([{"image_id": 1}], [{"instances": found}])
result = evaluator.evaluate()
assert abs(result["bbox"]["AP"] - 100) < 1e-6 and abs(result["segm"]["AP"] - 100) < 1e-6, result
drawn = Visualizer(np.zeros((40, 50, 3), np.uint8), MetadataCatalog.get("one")).draw_instance_predictions(found)
assert drawn.get_image().shape == (40, 50, 3)
"""


def test_keeps_a_working_detectron2():
    ran = run_tool()
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"kept Detectron2 0\.6, (pure Python|compiled operators), at ", ran.stderr)
    assert "downloading" not in ran.stderr


def test_refuses_another_archive(installer, tmp_path):
    other = tmp_path / "pb1-detectron2-0.6.tar.gz"
    other.write_bytes(b"not the pinned archive")
    with pytest.raises(
        installer.InstallError, match=rf"{hashlib.sha256(other.read_bytes()).hexdigest()} instead of 5d2e"
    ):
        installer.read_archive(other)


def test_an_edit_that_matches_nothing_stops(installer):
    edit = installer.Edit("some/file.py", r"np\.bool", "bool", "why", count=2)
    assert edit.apply("np.bool, np.bool") == "bool, bool"
    with pytest.raises(installer.InstallError, match=r"some/file\.py.*matches 1 times instead of 2"):
        edit.apply("only one np.bool")


def test_asks_for_torch_first(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    ran = run_tool(python=tmp_path / "bare" / "bin" / "python")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: torch cannot be imported")
    assert "install it first" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "bare").rglob("detectron2*"))


def test_without_an_index_says_so_and_leaves_nothing(tmp_path):
    ran = run_tool("--wheel-dir", str(tmp_path / "wheels"), PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert ran.returncode == 2
    assert "error: pip could not fetch pb1-detectron2==0.6: is the package index reachable?" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "wheels").exists()


def test_source_git_without_git(tmp_path):
    ran = run_tool("--source", "git", "--wheel-dir", str(tmp_path / "wheels"), PATH="")
    assert ran.returncode == 2
    assert "error: git is not installed" in ran.stderr


def test_writes_over_nothing_that_pip_cannot_remove(installer):
    installer.check_replaceable({"owners": ["detectron2"], "where": "/somewhere"})
    with pytest.raises(
        installer.InstallError, match="at /somewhere was not installed under that name by pip: remove it"
    ):
        installer.check_replaceable({"owners": [], "where": "/somewhere"})
    with pytest.raises(installer.InstallError, match="pip uninstall pb1-detectron2"):
        installer.check_replaceable({"owners": ["pb1-detectron2"], "where": "/somewhere"})
