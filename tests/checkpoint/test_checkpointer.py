"""Checkpoints of a training, on their own."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from piip.checkpoint.checkpointer import Checkpointer, find_checkpoint, newest_good_checkpoint
from piip.errors import CheckpointError


class State:
    """Something with a state, like a trainer."""

    def __init__(self, **state: object):
        self.state = state

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)


def tiny(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trip(tmp_path: Path) -> None:
    model, averaged = tiny(), tiny()
    # Values as configs and numpy leave them in optimizers.
    state = {"betas": OmegaConf.create([0.9, 0.999]), "lr": np.float64(0.1), "iteration": 4, "names": ("a", "b")}
    Checkpointer(model, str(tmp_path), averaged=averaged, trainer=State(**state)).save("model_0000004", iteration=4)
    path, content = newest_good_checkpoint(str(tmp_path))
    assert path == str(tmp_path / "model_0000004.pth")
    assert torch.equal(content["model"]["0.weight"], averaged[0].weight), "`model` holds the weights to use"

    other, other_averaged, trainer = tiny(), tiny(), State()
    Checkpointer(other, str(tmp_path), averaged=other_averaged, trainer=trainer).resume(path, content)
    assert same(other, model)
    assert same(other_averaged, averaged)
    assert trainer.state == {"betas": [0.9, 0.999], "lr": 0.1, "iteration": 4, "names": ("a", "b")}


def test_without_checkpoints(tmp_path: Path) -> None:
    assert newest_good_checkpoint(str(tmp_path)) is None
    assert find_checkpoint(str(tmp_path)) is None


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=1))
    checkpointer.save("model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()
    broken = Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=2, cannot_be_saved=lambda: 0))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        broken.save("model_0000001")
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]


def test_pruning_keeps_the_newest_the_final_and_the_best(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=1))
    for name in ("model_0000009", "model_0000019", "model_0000100", "model_final"):
        checkpointer.save(name)
    checkpointer.save_weights("model_best")
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth", "the best is not what is resumed"
    checkpointer.prune(2)
    assert {p.name for p in tmp_path.glob("*.pth")} == {
        "model_0000019.pth",
        "model_0000100.pth",
        "model_final.pth",
        "model_best.pth",
    }
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "model_best.pth")
    (tmp_path / "model_best.pth").unlink()
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / "model_final.pth")


@pytest.mark.parametrize("damage", ["truncated", "empty", "weights only", "gone"])
def test_newest_good_one_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    for i, name in enumerate(("model_0000001", "model_0000003", "model_0000005")):
        Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=2 * i + 1)).save(name)
        os.utime(tmp_path / f"{name}.pth", ns=(i, i))
    newest = tmp_path / "model_0000005.pth"
    if damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-200])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "weights only":
        torch.save({"model": tiny().state_dict()}, newest)
    else:
        newest.unlink()
    path, content = newest_good_checkpoint(str(tmp_path))
    assert path == str(tmp_path / "model_0000003.pth")
    assert content["trainer"]["iteration"] == 3
    assert "model_0000005.pth" in caplog.text
    assert "Resuming from the older" in caplog.text


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=1)).save("model_0000001")
    (tmp_path / "model_0000001.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"remove .*last_checkpoint' to start anew"):
        newest_good_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (tiny(4), r"0.weight is \(3, 2\) but \(4, 2\) in the model"),
        (nn.Sequential(nn.Linear(2, 3)), "is not in the model"),
        (nn.Sequential(*tiny(), nn.Linear(3, 3)), "2.weight is missing"),
    ],
)
def test_other_model_is_refused(tmp_path: Path, other: nn.Module, part: str) -> None:
    Checkpointer(tiny(), str(tmp_path), trainer=State(iteration=1)).save("model_0000001")
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=part):
        Checkpointer(other, trainer=State()).resume(*newest_good_checkpoint(str(tmp_path)))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_other_optimizer_is_refused(tmp_path: Path) -> None:
    model = tiny()
    one_group = torch.optim.AdamW(model.parameters())
    two_groups = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    Checkpointer(model, str(tmp_path), trainer=one_group).save("model_0000001")
    with pytest.raises(CheckpointError, match="its trainer does not fit this training"):
        Checkpointer(model, trainer=two_groups).resume(*newest_good_checkpoint(str(tmp_path)))


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["model_0000001.pth", "model.pkl"])
def test_code_in_a_file_is_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"0.weight": Evil(marker)}, "trainer": {}, "__author__": "somebody"}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match="could run code"):
        Checkpointer(tiny()).load(str(tmp_path / name))
    (tmp_path / "last_checkpoint").write_text(name)
    with pytest.raises(CheckpointError, match="could run code"):
        newest_good_checkpoint(str(tmp_path))
    assert not marker.exists()


def test_zoo_files_of_detectron2_are_read(tmp_path: Path) -> None:
    model = tiny()
    arrays = {name: np.full(tuple(value.shape), 2, np.float32) for name, value in model.state_dict().items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    Checkpointer(model).load(str(tmp_path / "model.pkl"))
    assert bool((model[0].weight == 2).all())

    # Files of the older Caffe2 zoo carry no author and are matched by similar names.
    other = tiny()
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"0.weight": arrays["0.weight"], "0.weight_momentum": 3.0}))
    Checkpointer(other).load(str(tmp_path / "caffe2.pkl"))
    assert bool((other[0].weight == 2).all())
