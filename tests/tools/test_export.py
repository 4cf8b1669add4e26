"""tools/export.py from the command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from piip.errors import run_cli
from tests.export.models import arguments, small


@pytest.fixture(scope="module")
def tool(project: Path):
    spec = importlib.util.spec_from_file_location("export", project / "tools" / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_detector(tool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(small("retinanet").state_dict(), tmp_path / "weights.pth")
    output = tmp_path / "detector.pt2"
    options = ["--checkpoint", str(tmp_path / "weights.pth"), "--what", "model", "--size", "96", "128"]
    assert tool.main([*arguments("retinanet"), *options, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert "image 1 x 3 x 96 x 128" in printed.out
    assert "checked on 96 x 128, " in printed.out
    assert "warning" not in printed.err
    found = torch.export.load(output).module()(torch.full((1, 3, 96, 128), 128.0))
    assert list(found) == ["boxes", "scores", "classes"]
    assert found["boxes"].shape[1] == 4


def test_a_classifier_as_onnx(tool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason='not installed: pip install "piip[export]"')
    output = tmp_path / "classifier.onnx"
    assert tool.main([*arguments("classifier"), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "image 1 x 3 x 32 x 32" in printed
    assert "logits   1 x 10" in printed
    assert onnxruntime.InferenceSession(output).get_outputs()[0].shape == [1, 10]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "quickstart/retinanet_lsnet_digit", "--output", "x.pt2"], "Did you mean"),
        (["--config-file", "no-config", "--output", "x.pth"], "suffix '.pth' of the file 'x.pth' says no format"),
        ([*arguments("retinanet"), "--output", "onnx"], "suffix '' of the file 'onnx' says no format; name the"),
        ([*arguments("retinanet"), "--output", "missing/x.pt2"], "there is no folder 'missing'"),
        ([*arguments("retinanet"), "--output", "x.pt2", "--size", "100", "128"], "multiples of 32"),
        ([*arguments("piip"), "--output", "x.pt2", "--checkpoint", "missing.pth"], "checkpoint 'missing.pth'"),
        (["--config-file", "quickstart/dino_piip_digits", "--output", "x.pt2", "--what", "model"], "a whole DINO"),
        ([*arguments("retinanet"), "--output", "x.pt2", "--what", "head"], "invalid choice: 'head'"),
        (["--config-file", "common/optim.py", "--output", "x.pt2"], "the config has no model"),
    ],
)
def test_bad_requests(tool, args: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: tool.main(args))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
