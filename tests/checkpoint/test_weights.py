"""Reading weights without loading them: one file or several, and what must be told about broken ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from piip.checkpoint import load_weights
from piip.checkpoint.weights import read_weights
from piip.errors import CheckpointError
from tests.checkpoint.memory import MEASURE, run


def shard(folder, tensors, kind="safetensors", parts=3):
    """Writes tensors as the sharded checkpoints of the hub are written; returns the index."""
    names = list(tensors)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map = {}
    for k in range(parts):
        file = f"{stem}-{k + 1:05}-of-{parts:05}.{kind}"
        part = {name: tensors[name] for name in names[k::parts]}
        weight_map.update(dict.fromkeys(part, file))
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("named_by", ["index", "folder"])
def test_checkpoints_in_several_files(tmp_path, model, kind, named_by):
    index = shard(tmp_path, model.state_dict(), kind)
    target = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
    assert load_weights(target, str(index if named_by == "index" else tmp_path)).complete
    assert torch.equal(target[0].weight, model[0].weight)


def test_of_two_formats_in_a_folder_one_is_taken(tmp_path, model):
    shard(tmp_path, {"old": torch.ones(1)}, "bin", parts=1)
    shard(tmp_path, {"new": torch.ones(1)}, parts=1)
    assert list(read_weights(tmp_path)) == ["new"]


def test_every_missing_part_is_named(tmp_path, model):
    index = shard(tmp_path, model.state_dict())
    for k in (1, 3):
        (tmp_path / f"model-0000{k}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"3 files, of which 2 are missing.*model-00001-of.*, model-00003-of"):
        read_weights(index)


def test_parts_of_another_version_are_refused(tmp_path, model):
    index = shard(tmp_path, model.state_dict())
    save_file({"other": torch.ones(1)}, tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors lacks 1 of the 1 tensors.*0\.bias"):
        read_weights(index)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": "../w.pth"}}', '{"weight_map": {"w": 1}}'],
)
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    torch.save({"w": torch.ones(1)}, tmp_path.parent / "w.pth")
    with pytest.raises(CheckpointError, match="is no index of weight files"):
        read_weights(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_reading_takes_no_memory(tmp_path, suffix):
    tensors = {f"w{k}": torch.ones(4_000_000) for k in range(8)}  # 128 MB
    path = tmp_path / f"weights.{suffix}"
    torch.save({"state_dict": tensors}, path) if suffix == "pth" else save_file(tensors, path)
    del tensors
    code = f"""
from piip.checkpoint.weights import read_weights
with measure() as memory:
    tensors = read_weights({str(path)!r})
    assert sum(float(t.sum()) for t in tensors.values()) == 32e6
"""
    assert run(MEASURE + code)["anonymous"] < 64e6


def test_files_of_before_torch_1_6_are_read(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pth")["w"].tolist() == [1, 1]
