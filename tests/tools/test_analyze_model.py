"""tools/analyze_model.py and tools/make_model_zoo.py from the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from piip.analysis import build_on_meta, published_cost
from piip.engine.config import load_config
from piip.errors import run_cli
from tests.engine.running import run_tool

DIGITS = "quickstart/mask_rcnn_piip_digits"


def main_of(path: Path):
    """The main function of a tool, to run it in this process, where the published models are already counted."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_a_classifier(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze_model", "--config-file", "quickstart/classification_piip_digits"])
    assert main_of(project / "tools" / "analyze_model.py")() == 0
    printed = capsys.readouterr().out
    assert "input 32 x 32" in printed
    assert "network.branches.2" in printed
    assert "network.heads" in printed


def test_one_config(project: Path, tmp_path: Path) -> None:
    overrides = [
        "model.roi_heads.num_classes=3",
        "model.proposal_generator.post_nms_topk=[200,100]",
        "model.roi_heads.box_head.fc_dims=[128]",
        "model.roi_heads.box_predictor.input_shape.channels=128",
    ]
    parts = ["--parts", "backbone.bottom_up", "--parts", "roi_heads"]
    output = tmp_path / "cost.json"
    options = ["--config-file", DIGITS, *overrides, "--input-size", "100", "200", *parts, "--json", str(output)]
    ran = run_tool(*options, script=project / "tools" / "analyze_model.py")
    assert ran.status == 0, ran.output
    assert "input 128 x 224" in ran.output
    assert "box head: 100 proposals" in ran.output
    assert "By the papers' counting" in ran.output
    assert "Published" not in ran.output
    data = json.loads(output.read_text())
    assert data["input_size"] == [128, 224]
    assert data["parts"]["roi_heads.box_predictor"]["params"] == 129 * 4 + 129 * 12
    assert "proposal_generator" not in data["parts"]
    backbone = published_cost(build_on_meta(load_config(DIGITS).model))
    assert data["by_papers"]["total"]["params"] == sum(cost.params for cost in backbone.values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "quickstart/mask_rcnn_pip_digits"], "Did you mean 'quickstart/mask_rcnn_piip_digits.py'"),
        (["--config-file", DIGITS, "model.roi_heads.num_clases=3"], "Did you mean 'model.roi_heads.num_classes'?"),
        (["--config-file", DIGITS, "--parts", "neck"], "no part's name starts with 'neck'"),
        (["--config-file", DIGITS, "--input-size", "-1", "64"], "input size -1 x 64 must be positive"),
        (["--config-file", "common/optim.py"], "config 'common/optim.py' has no model"),
        (["--config-file", "common/models/mask_rcnn_piip.py"], "model.backbone.bottom_up.branches has no value"),
        (["--zoo", "--parts", "neck"], "--zoo counts the published models as they are"),
        ([], "one of the arguments --config-file --zoo --sizing is required"),
        (["--sizing", "--json", "cost.json"], "--sizing takes no other options than --nodes and --assume"),
        (["--config-file", DIGITS, "--nodes", "2"], "--nodes and --assume belong to --sizing"),
        (["--sizing", "--nodes", "0"], "--nodes 0: there must be at least 1"),
        (["--sizing", "--assume", "peak_flop=1"], "Did you mean 'peak_flops'?"),
        (["--sizing", "quickstart/retinanet_lsnet_digits"], "contains no PIIP"),
    ],
)
def test_bad_requests(project: Path, args: list[str], message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", *args])
    with pytest.raises(SystemExit) as end:
        run_cli(main_of(project / "tools" / "analyze_model.py"))
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_published_model(project: Path, monkeypatch, capsys) -> None:
    config = "COCO-InstanceSegmentation/mask_rcnn_vit_b_1024_1x"
    tool = main_of(project / "tools" / "analyze_model.py")
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", "--config-file", config])
    assert tool() == 0
    out = capsys.readouterr().out
    assert "input 1024 x 1024" in out
    assert "Published: 90 M parameters, 463 G FLOPs." in out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "model.backbone.bottom_up.branch.depth=6",
                                      "model.backbone.bottom_up.branch.window_size=0"])  # fmt: skip
    assert tool() == 0
    assert "Published" not in capsys.readouterr().out


def test_zoo(project: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", "--zoo", "--json", str(tmp_path / "zoo.json")])
    assert main_of(project / "tools" / "analyze_model.py")() == 0
    assert "All other published numbers are reproduced" in capsys.readouterr().out
    data = json.loads((tmp_path / "zoo.json").read_text())
    row = data["COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py"]
    assert [row[f"{k}_params_M"] for k in ("published", "recounted", "true")] == [146.0, 146.441707, 175.043715]


def test_model_zoo_is_checked(project: Path, monkeypatch) -> None:
    before = (project / "MODEL_ZOO.md").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", ["make_model_zoo.py", "--check"])
    assert main_of(project / "tools" / "make_model_zoo.py")() == 0
    assert (project / "MODEL_ZOO.md").stat().st_mtime_ns == before
