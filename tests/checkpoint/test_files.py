"""Checkpoint files: safe reading, atomic writing."""

import os
import pickle

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
