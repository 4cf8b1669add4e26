"""Checkpoint files: safe reading, atomic writing."""

import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from piip.checkpoint.files import read_checkpoint, tensors_of, write_atomically
from piip.errors import CheckpointError


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": {"w": Exploit()}}))
    else:
        torch.save({"model": Exploit()}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}.*could run code"):
        read_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


def test_model_zoo_pickles_are_read_as_arrays(tmp_path):
    content = {"model": {"w": np.arange(6.0).reshape(2, 3), "w_momentum": np.zeros(1)}, "__author__": "zoo"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert torch.equal(tensors_of(read_checkpoint(tmp_path / "zoo.pkl"))["w"], torch.arange(6.0).double().view(2, 3))


def test_safetensors_are_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert tensors_of(read_checkpoint(tmp_path / "w.safetensors"))["w"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors", "torn.pkl"])
@pytest.mark.parametrize("keep", [0, 100])
def test_truncated_files_are_named(tmp_path, name, keep):
    whole = tmp_path / "whole"
    torch.save({"w": torch.ones(1000)}, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"{name}.*({keep} bytes|refused)"):
        read_checkpoint(tmp_path / name)


WRAPPED = {"w": torch.ones(2), "b": torch.zeros(1, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    "checkpoint",
    [
        WRAPPED,
        {
            "state_dict": WRAPPED,
            "meta": {"epoch": 12, "time": "now"},
            "optimizer": {"state": {0: {"w": torch.ones(9)}}},
        },
        {"model": {"state_dict": WRAPPED}},
        {"module": {"model": {"module.w": WRAPPED["w"], "module.b": WRAPPED["b"]}}},
        {"state_dict": WRAPPED, "model": {"v": torch.ones(1)}},
        {  # as DeepSpeed leaves it
            "module": WRAPPED,
            "buffer_names": ["b"],
            "optimizer": None,
            "param_shapes": [{"w": torch.Size([2])}],
            "lr_scheduler": {"last_epoch": 3},
            "ds_config": {"zero_optimization": {"stage": 1}},
            "ds_version": "0.14.0",
            "global_steps": 9,
        },
    ],
    ids=["bare", "mmcv", "nested", "nested with prefix", "both", "DeepSpeed"],
)
def test_wrappers_and_leftovers(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "wrapped.pth")
    tensors = tensors_of(read_checkpoint(tmp_path / "wrapped.pth", mmap=True))
    assert {name: (t.tolist(), t.dtype) for name, t in tensors.items()} == {
        "w": ([1, 1], torch.float32),
        "b": ([0], torch.bfloat16),
    }


def test_the_empty_tensors_of_a_sharded_training_are_told():
    with pytest.raises(CheckpointError, match=r"1 of 2 tensors of the checkpoint are empty \(w first\).*zero_to_fp32"):
        tensors_of({"module": {"w": torch.empty(0), "b": torch.ones(1)}, "ds_version": "0.14.0"})


@pytest.mark.parametrize("numpy_1", [False, True])
def test_numpy_numbers_in_training_logs_are_harmless(tmp_path, numpy_1):
    log = {"loss": np.float64(0.5), "epoch": np.int64(3), "best": np.bool_(True), "type": np.dtype("float32")}
    torch.save({"state_dict": WRAPPED, "meta": log}, tmp_path / "log.pth")
    if numpy_1:  # which had the same function in another module
        with zipfile.ZipFile(tmp_path / "log.pth") as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "log.pth", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "log.pth")["meta"] == log


def test_other_objects_in_training_logs_are_refused(tmp_path):
    torch.save({"state_dict": WRAPPED, "meta": {"folder": pathlib.PurePosixPath("a")}}, tmp_path / "log.pth")
    with pytest.raises(CheckpointError, match=r"log\.pth' is not a plain weight file and is refused"):
        read_checkpoint(tmp_path / "log.pth")


def test_missing_files_and_files_without_tensors_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth' does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        tensors_of({"epoch": 3})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, lambda f: f.write(b"old"))

    def fail(f):
        f.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("# Notes, not weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth' \(20 bytes\) is not a checkpoint; check the path") as error:
        read_checkpoint(path)
    assert "weights_only" not in str(error.value)
