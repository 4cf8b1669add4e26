"""Files that compute what the model does, and none where they would not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piip.errors import ConfigError, DependencyError
from piip.export import SUFFIXES, Network, export, export_model, network_of
from tests.export.models import small


def toy(module: nn.Module) -> Network:
    """A network that is no model of ours."""
    return Network(module, module, 4, 4, 4, (8, 12), False, {"part": "toy"})


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"scaled": self.scale * image}


@pytest.mark.parametrize(
    ("kind", "part", "suffix", "dynamic"),
    [
        ("lsnet_fpn", "backbone", ".onnx", True),
        pytest.param("retinanet", "model", ".pt2", True, marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "model", ".onnx", False, marks=pytest.mark.slow),
        pytest.param("piip", "backbone", ".pt2", True, marks=pytest.mark.slow),
        ("piip", "backbone", ".onnx", False),
    ],
)
def test_models(kind: str, part: str, suffix: str, dynamic: bool, tmp_path: Path) -> None:
    network = network_of(small(kind), part)
    output = tmp_path / f"model{suffix}"
    size = {"lsnet_fpn": (160, 192), "piip": (128, 160)}.get(kind, (96, 128))
    report = export_model(network, output, size, dynamic)
    assert report["error"] < 1e-4
    assert len(report["checked"]) == 1 + dynamic
    assert report.get("detections", 100) > 20
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize(("kind", "suffix"), [("mask_rcnn", ".pt2"), ("retinanet", ".onnx")])
def test_nothing_found_is_an_empty_answer(kind: str, suffix: str, tmp_path: Path) -> None:
    model = small(kind)
    thresholds = model if kind == "retinanet" else model.roi_heads.box_predictor
    thresholds.test_score_thresh = 1.0
    report = export_model(network_of(model, "model"), tmp_path / f"x{suffix}", (64, 64))
    assert report["detections"] == 0


def test_a_program_runs_without_this_package(tmp_path: Path) -> None:
    network = network_of(small("lsnet_fpn"))
    export_model(network, tmp_path / "model.pt2", (64, 64))
    image = network.image((64, 64), seed=5)
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys, torch; found = {'piip.json': ''}; program = torch.export.load('model.pt2', extra_files=found);"
        "torch.save(program.module()(torch.load('image.pt')), 'maps.pt'); print(found['piip.json']);"
        "assert 'piip' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    info = json.loads(ran.stdout)
    assert info["size"] == [64, 64]
    assert info["channels"] == "RGB"
    assert info["part"] == "backbone"
    maps = torch.load(tmp_path / "maps.pt")
    with torch.no_grad():
        torch.testing.assert_close(maps, network.reference(image), rtol=1e-4, atol=1e-4)


def test_a_graph_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason='not installed: pip install "piip[export]"')
    monkeypatch.setattr(export, "_ONE_FILE", 0)  # as of a model of more than 2 GB
    output = tmp_path / "toy.onnx"
    output.write_text("an older file")
    report = export_model(toy(Scaled()), output, dynamic=True)
    assert report == {"checked": [(8, 12), (16, 8)], "error": 0.0, "outputs": {"scaled": (1, 3, 8, 12)}}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    session = onnxruntime.InferenceSession(output)
    assert json.loads(session.get_modelmeta().custom_metadata_map["piip"]) == {"part": "toy", "size": None}
    assert [x.name for x in (*session.get_inputs(), *session.get_outputs())] == ["image", "scaled"]
    image = np.ones((1, 3, 20, 4), dtype=np.float32)
    assert (session.run(None, {"image": image})[0] == 2).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_computes_something_else_is_not_kept(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"toy{suffix}"
    output.write_text("an older file")
    wrong = replace(toy(Scaled()), reference=lambda image: {"scaled": 2.001 * image})
    with pytest.raises(ConfigError, match=r"'scaled' of the exported file is off by 5.0e-04"):
        export_model(wrong, output)
    assert [p.name for p in tmp_path.iterdir()] == [output.name]
    assert output.read_text() == "an older file"


class Flat(nn.Module):
    """Knows only one size."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"flat": image.reshape(3, 8, 12)}


class Turned(nn.Module):
    """Does something else with upright images."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"turned": image if image.shape[2] < image.shape[3] else -image}


@pytest.mark.parametrize("module", [Flat(), Turned()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_of_one_size_cannot_be_dynamic(module: nn.Module, suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"toy{suffix}"
    with pytest.raises(ConfigError, match=r"cannot be exported with --dynamic|'turned' of the exported file is off"):
        export_model(toy(module), output, dynamic=True)
    assert not list(tmp_path.iterdir())
    export_model(toy(module), output)
    assert output.is_file()


@pytest.mark.parametrize(
    ("size", "dynamic", "message"),
    [
        ((64, 100), False, r"64 x 100 does not fit the model: height and width must be multiples of 32 from 64 on"),
        ((32, 64), False, r"32 x 64 does not fit"),
        ((128, 160), True, r"128 x 160 does not fit the model with --dynamic: .* multiples of 32 from 160 on"),
        ((0, 64), False, r"0 x 64 does not fit"),
    ],
)
def test_sizes_that_do_not_fit(size: tuple[int, int], dynamic: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(network_of(small("lsnet_fpn")), tmp_path / "x.pt2", size, dynamic)


def test_wrong_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    for name, message in {
        "x.pth": r"suffix '.pth' of .* name the file \*.pt2 or \*.onnx",
        "folder.pt2": "is a folder",
        "missing/x.pt2": "there is no folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            export_model(toy(Scaled()), tmp_path / name)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(DependencyError, match=r'ONNX needs onnxruntime: run `pip install "piip\[export\]"`'):
        export_model(toy(Scaled()), tmp_path / "x.onnx")
    export_model(toy(Scaled()), tmp_path / "x.pt2")


def test_unknown_parts_and_models_without_any() -> None:
    with pytest.raises(ConfigError, match="no part 'head' to export; choose backbone or model"):
        network_of(small("lsnet_fpn"), "head")
    with pytest.raises(ConfigError, match="a Linear has no backbone to export"):
        network_of(nn.Linear(1, 1))
