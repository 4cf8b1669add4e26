"""Reading the reference numbers in tests/goldens: the same weights and inputs, and the comparison."""

from __future__ import annotations

import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"


def case(name: str) -> dict[str, Any]:
    """A reference case, e.g. ``piip/tiny_3branch``."""
    return json.loads((GOLDENS / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, Tensor]:
    """The full tensors beside a case."""
    with np.load(GOLDENS / f"{name}.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data}


def normal(seed: int, shape: list[int]) -> Tensor:
    """Standard normal float32 numbers."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def weights(entries: list) -> dict[str, Tensor]:
    """State dict by the fill rule of the references: values depend on the released name, shape and tag alone."""
    rules = {
        "gamma": lambda v, shape: 0.5 + 0.1 * v,
        "norm": lambda v, shape: 1 + 0.1 * v,
        "bias": lambda v, shape: 0.1 * v,
        "off_w": lambda v, shape: 0.02 * v,
        "off_b": lambda v, shape: v,
        "fan": lambda v, shape: v / math.sqrt(np.prod(shape[1:])),
    }
    out = {}
    for key, shape, tag in entries:
        if tag != "keep":
            values = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
            out[key] = torch.from_numpy(np.asarray(rules[tag](values, shape), dtype=np.float32))
        else:
            out[key] = torch.zeros(shape, dtype=torch.int64)  # an index that models of ours do not store
    return out


def input_of(reference: dict[str, Any]) -> Tensor:
    """The input batch of a case."""
    return normal(reference["input"]["seed"], reference["input"]["shape"])


def assert_matches(got: Tensor, record: dict[str, Any], rtol: float = 1e-5) -> None:
    """Compares a tensor with a record: shape, samples and norm, relative to the samples' own norm."""
    assert list(got.shape) == record["shape"], record["name"]
    flat = got.detach().double().flatten()
    index = torch.tensor([int(i) for i in record["samples"]])
    want = torch.tensor(list(record["samples"].values()), dtype=torch.float64)
    error = ((flat[index] - want).norm() / want.norm().clamp_min(1e-12)).item()
    assert error <= rtol, f"{record['name']}: samples are off by {error:.1e}"
    assert math.isclose(flat.norm().item(), record["l2"], rel_tol=rtol), record["name"]


def lsnet_weights(shapes: dict[str, list[int]], rule: str) -> dict[str, Tensor]:
    """State dict by the fill rules of the LSNet references (``base`` or ``calm``), without index buffers."""
    return {
        key: _lsnet_weight(key, tuple(shape), rule)
        for key, shape in shapes.items()
        if not key.endswith("attention_bias_idxs")
    }


@functools.lru_cache(maxsize=2000)
def _lsnet_weight(key: str, shape: tuple[int, ...], rule: str) -> Tensor:
    v = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(v)
    elif key.endswith("running_mean"):
        value = 0.1 * v
    elif key.endswith("num_batches_tracked"):
        value = np.zeros(shape)
    elif len(shape) == 1:
        value = 1 + 0.1 * v if key.endswith("weight") else 0.1 * v
    else:
        value = v / math.sqrt(float(np.prod(shape[1:])))
    if rule == "calm":
        if key.endswith("attention_biases"):
            value = v
        elif key.endswith(("mixer.bn.weight", "ffn.m.pw2.bn.weight", "mixer.m.proj.1.bn.weight")):
            value = 0.25 * value
    return torch.from_numpy(np.asarray(value, dtype=np.float32))
