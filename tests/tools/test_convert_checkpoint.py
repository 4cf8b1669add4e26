"""tools/convert_checkpoint.py from the command line, on real files of small models."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from safetensors import safe_open
from safetensors.torch import load_file

from piip import model_zoo
from piip.checkpoint import load_official, load_weights, to_official
from piip.checkpoint.weights import read_weights
from piip.errors import run_cli
from piip.modeling import SingleBranch, ViTBranch
from tests.checkpoint.test_weights import shard
from tests.engine.running import run_tool

DIGITS = "quickstart/mask_rcnn_piip_digits.py"


@pytest.fixture(scope="module")
def model():
    return instantiate(model_zoo.get_config(DIGITS).model)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    """The weights as a training of ours and as the released code leave them."""
    folder = tmp_path_factory.mktemp("files")
    torch.save({"model": model.state_dict(), "iteration": 7}, folder / "own.pth")
    released = {name: tensor.bfloat16() for name, tensor in to_official(model).items()}
    torch.save({"state_dict": released, "meta": {"epoch": 12}, "optimizer": {}}, folder / "released.pth")
    return folder


@pytest.fixture
def convert(project, monkeypatch, capsys):
    """Runs the tool in this process; returns status, output and errors."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", project / "tools" / "convert_checkpoint.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            run_cli(tool.main)
        return (end.value.code, *capsys.readouterr())

    return run


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_there_and_back_from_the_command_line(project, model, files, tmp_path):
    def run(*args):
        ran = run_tool(*map(str, args), script=project / "tools" / "convert_checkpoint.py")
        assert ran.status == 0, ran.output
        return ran.output

    out = run(files / "own.pth", "--to", tmp_path / "official.pth", "--layout", "official", "--config", DIGITS)
    assert "a 3-branch PIIP of widths 64/96/128 and depths 2/2/2 (DeiT kind) in a Mask R-CNN" in out
    assert "342 loaded, 0 resized, 0 missing" in out
    assert "6 of them added with neutral values" in out
    other = instantiate(model_zoo.get_config(DIGITS).model)
    assert load_official(other, torch.load(tmp_path / "official.pth", weights_only=True)).complete
    assert equal(other, model)
    run(tmp_path / "official.pth", "--to", tmp_path / "back.safetensors", "--config", DIGITS)
    again = instantiate(model_zoo.get_config(DIGITS).model)
    assert load_weights(again, str(tmp_path / "back.safetensors")).complete
    assert equal(again, model)
    assert sorted(os.listdir(tmp_path)) == ["back.safetensors", "official.pth"]


def test_the_config_is_found_and_the_types_are_told(convert, model, files, tmp_path):
    target = tmp_path / "out.safetensors"
    status, out, err = convert(files / "released.pth", "--to", target, "--dtype", "float32")
    assert status == 0
    assert "looking for its config among all packaged ones" in err
    assert f"config   {DIGITS}" in out
    assert "348 tensors (348 bfloat16), 3.21 M numbers" in out
    assert re.search(r"342 tensors \(342 float32\), 3\.08 M numbers, 12\.\d MB", out)
    assert "0 unexpected, 6 ignored" in out
    with safe_open(target, "pt") as f:
        assert f.metadata() == {"format": "piip", "config": DIGITS, "source": str(files / "released.pth")}
    own = model.state_dict()
    assert all(torch.equal(t, own[name].bfloat16().float()) for name, t in load_file(target).items())


def test_several_files_a_bare_backbone_and_the_types_as_they_are(convert, model, tmp_path):
    backbone = model.backbone.bottom_up
    shard(tmp_path, {name: tensor.half() for name, tensor in to_official(backbone).items()})
    status, out, _ = convert(tmp_path, "--to", tmp_path / "out.safetensors")
    assert status == 0
    assert f"config   {DIGITS}" in out
    tensors = read_weights(tmp_path / "out.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {n.removeprefix("backbone.bottom_up.") for n in tensors} == set(backbone.state_dict())


def test_overrides_for_a_model_of_ones_own(convert, tmp_path):
    cfg = model_zoo.get_config(DIGITS)
    cfg.model.roi_heads.num_classes = 3
    own = instantiate(cfg.model)
    torch.save({"model": own.state_dict()}, tmp_path / "own.pth")
    args = [tmp_path / "own.pth", "--to", tmp_path / "out.pth", "--layout", "official"]
    status, _, err = convert(*args)
    assert status == 2
    assert "which no packaged config has exactly; name its config with --config" in err
    assert convert(*args, "--config", DIGITS, "model.roi_heads.num_classes=3")[0] == 0
    assert load_official(instantiate(cfg.model), torch.load(tmp_path / "out.pth")).complete


@pytest.mark.parametrize("layout", ["piip", "official"])
def test_incomplete_checkpoints_are_not_written(convert, model, tmp_path, layout):
    branch = {name: torch.rand_like(t) for name, t in model.backbone.bottom_up.branches[1].state_dict().items()}
    torch.save(branch, tmp_path / "one_branch.pth")
    torch.save({k: v for k, v in model.state_dict().items() if "mask_head" not in k}, tmp_path / "no_masks.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "ten.pth")
    target = tmp_path / "out" / "w.pth"
    target.parent.mkdir()
    for name, *overrides in (("ten", "model.roi_heads.num_classes=5"), ("no_masks",), ("one_branch",)):
        args = (tmp_path / f"{name}.pth", "--to", target, "--layout", layout, "--config", DIGITS, *overrides)
        status, _, err = convert(*args)
        assert status == 2
        assert f"does not hold exactly the tensors of config {DIGITS!r}" in err
        assert os.listdir(target.parent) == []


def test_mistakes_are_told_in_a_line_and_leave_nothing(convert, files, tmp_path):
    single = tmp_path / "single.pth"
    torch.save(to_official(SingleBranch(ViTBranch(80, 2, 5))), single)
    empty = tmp_path / "zero3.pth"
    torch.save({"module": {"w": torch.empty(0)}}, empty)
    own = files / "own.pth"
    target = tmp_path / "out" / "w.safetensors"
    target.parent.mkdir()
    for args, message in (
        ([own, "--to", tmp_path / "w.onnx"], "must end in .safetensors or .pth"),
        ([own, "--to", tmp_path / "no" / "w.pth"], "there is no folder"),
        ([tmp_path / "singl.pth", "--to", target], "Did you mean 'single.pth'?"),
        ([empty, "--to", target], "zero_to_fp32.py"),
        ([single, "--to", target], "holds a single network of width 80 and depth 2 (DeiT kind), which no packaged"),
        (
            [single, "--to", target, "--config", DIGITS],
            "network of width 80 and depth 2 (DeiT kind), which fits 0 branches",
        ),
        ([own, "--to", target, "--config", "common/optim.py"], "config 'common/optim.py' has no model"),
        ([own, "--to", target, "model.x=1"], "overrides change a config: give it with --config"),
    ):
        status, _, err = convert(*args)
        assert status == 2
        assert message in err
        assert os.listdir(target.parent) == []


def test_lsnet_detector_there_and_back_with_the_order_of_its_anchors(convert, tmp_path):
    config = "quickstart/retinanet_lsnet_digits.py"
    lsnet = instantiate(model_zoo.get_config(config).model)
    torch.save({"model": lsnet.state_dict()}, tmp_path / "own.pth")
    status, out, err = convert(tmp_path / "own.pth", "--to", tmp_path / "released.pth", "--layout", "official")
    assert status == 0, err
    assert f"config   {config}" in out
    released = torch.load(tmp_path / "released.pth", weights_only=True)["state_dict"]
    weight = lsnet.head.cls_score.weight.detach().unflatten(0, (3, 3, 10))  # sizes, ratios, classes
    assert released["bbox_head.retina_cls.weight"].equal(weight.transpose(0, 1).flatten(0, 2))
    status, _, err = convert(tmp_path / "released.pth", "--to", tmp_path / "back.pth", "--config", config)
    assert status == 0, err
    again = instantiate(model_zoo.get_config(config).model)
    assert load_weights(again, str(tmp_path / "back.pth")).complete
    assert equal(again, lsnet)
