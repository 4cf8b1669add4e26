"""Checkpoints in parts: written by two processes, read by any number, and never a way to run code."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from piip.checkpoint.checkpointer import Checkpointer, find_checkpoint, newest_good_checkpoint
from piip.checkpoint.sharded import leaves, read_sharded
from piip.checkpoint.weights import read_weights
from piip.errors import CheckpointError, run_cli
from tests.checkpoint import two_writers
from tests.checkpoint.test_checkpointer import Evil
from tests.checkpoint.two_writers import DIGITS, digits, rows
from tests.engine.running import Run, run_tool


def write(name: str, folder: Path) -> Run:
    """One of the functions of ``two_writers``, in two processes."""
    return run_tool(name, str(folder), processes=2, script=two_writers.__file__)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for name in ("write_state", "write_digits"):
        assert (result := write(name, folder)).status == 0, result.output
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Two checkpoints of a training, and which one is the last."""
    for iteration in (3, 5):
        shutil.copytree(written / "model_0000003", tmp_path / f"model_{iteration:07d}")
        os.utime(tmp_path / f"model_{iteration:07d}", ns=(iteration, iteration))
    (tmp_path / "last_checkpoint").write_text("model_0000005")
    return tmp_path


def test_one_process_reads_what_two_wrote(written: Path) -> None:
    content = read_sharded(written / "model_0000003")
    assert content["trainer"]["names"] == ("a", "b")
    assert content["trainer"]["nested"] == [{"lr": 0.5}, None]
    for count in (1, 2, 3, 7):  # also fewer rows than processes
        assert torch.equal(content["model"][f"rows{count}"], rows(count))
    assert torch.equal(content["model"]["whole"], torch.arange(3.0))
    assert list(read_sharded(written / "model_0000003", only="trainer")) == ["trainer"]
    shapes = read_sharded(written / "model_0000003", shapes_only=True)
    assert {key for key, t in leaves(shapes) if t.is_meta} == {f"model/rows{count}" for count in (1, 2, 3, 7)}
    assert shapes["model"]["rows7"].shape == (7, 3)
    assert sorted(p.name for p in written.iterdir()) == ["digits", "model_0000003"], "nothing temporary is left"


def test_it_is_found_resumed_from_and_pruned(folder: Path) -> None:
    path, content = newest_good_checkpoint(str(folder))
    assert path == str(folder / "model_0000005")
    assert torch.equal(content["model"]["rows3"], rows(3))
    assert newest_good_checkpoint(str(folder), in_parts=True)[1]["model"]["rows3"].is_meta
    assert find_checkpoint(str(folder)) == path
    assert Checkpointer(torch.nn.Linear(1, 1), str(folder)).prune(1) == ["model_0000003"]
    assert sorted(p.name for p in folder.iterdir()) == ["last_checkpoint", "model_0000005"]
    shutil.copytree(folder / "model_0000005", folder / "model_best")
    assert find_checkpoint(str(folder)) == str(folder / "model_best")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
@pytest.mark.parametrize("name", [".metadata", "__1_0.distcp", "state.pth"])
def test_a_damaged_one_is_not_resumed_from(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    damage(folder / "model_0000005" / name)
    path, content = newest_good_checkpoint(str(folder))
    assert path == str(folder / "model_0000003")
    assert torch.equal(content["model"]["rows7"], rows(7))
    assert "Resuming from the older" in caplog.text
    assert "model_0000005" in caplog.text


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    marker = folder / "ran"
    target = folder / "model_0000005"

    def in_list(content: object) -> None:
        content.planner_data = Evil(marker)

    def in_values(content: object) -> None:
        content.state_dict_metadata["model/rows3"] = BytesStorageMetadata()

    def outside(content: object) -> None:
        next(iter(content.storage_data.values())).relative_path = "../../secret"

    original = (target / ".metadata").read_bytes()
    for change, reason in (
        (in_list, r"reading it could run code \(it refers to posix.system\)"),
        (in_values, "reading it could run code"),
        (outside, r"refers to '../../secret' outside of it"),
    ):
        content = pickle.loads(original)  # our own
        change(content)
        (target / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match=reason):
            read_sharded(target)
    (target / ".metadata").write_bytes(original)
    torch.save({"model": Evil(marker)}, target / "state.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_sharded(target)
    assert not marker.exists()


def test_a_detector_in_parts_becomes_one_file(
    written: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digits().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_weights(written / "digits").items())
    spec = importlib.util.spec_from_file_location("convert_checkpoint", project / "tools" / "convert_checkpoint.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    target = tmp_path / "one.safetensors"
    monkeypatch.setattr(sys, "argv", ["tool", str(written / "digits"), "--to", str(target), "--config", DIGITS])
    with pytest.raises(SystemExit, match="0"):
        run_cli(tool.main)
    found = read_weights(target)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system: run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_all_processes_learn_that_the_disk_is_full(small_disk: Path) -> None:
    result = write("write_digits", small_disk)
    assert result.status == 2
    assert result.output.count("error: no space left for") == 2
    assert not list(small_disk.iterdir()), "what was begun is removed"
