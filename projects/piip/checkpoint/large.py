"""Weights for models that are as large as the memory: announced before they are read, and never held twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

__all__ = ["available_memory", "check_memory", "fill", "meta_bytes"]

# Limit and use of the control group that this process may be confined to (versions 2 and 1).
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def check_memory(model: nn.Module, device: str | torch.device = "cpu") -> None:
    """Refuses to load a model whose parameters wait on the meta device when the memory cannot take them.

    Raises:
        CheckpointError: with what is needed and what is available.
    """
    needed, available = meta_bytes(model), available_memory(device)
    if available is None or needed <= available:
        return
    dtypes = {p.dtype for p in model.parameters() if p.is_meta}
    in_bfloat16 = sum(2 * p.numel() for p in model.parameters() if p.is_meta)
    half = in_bfloat16 < needed and in_bfloat16 <= available
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    raise CheckpointError(
        f"the model needs {_gib(needed)} for its weights in {names}, and {_gib(available)} are available on {device}; "
        + (f"use dtype=bfloat16, which needs {_gib(in_bfloat16)}." if half else "use a machine with more memory.")
    )


def meta_bytes(model: nn.Module) -> int:
    """The memory that the parameters on the meta device will take."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.is_meta)


def available_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can still be allocated on a device; None where nobody knows."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [_system_memory(), *(_cgroup_memory(*files) for files in _CGROUPS)]
    return min((n for n in found if n is not None), default=None)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return None


def _cgroup_memory(limit: str, used: str, stat: str) -> int | None:
    """What a control group has left; file pages, which it can drop, count as free."""
    try:
        free = int(Path(limit).read_text()) - int(Path(used).read_text())
        pages = dict(line.split() for line in Path(stat).read_text().splitlines())
        return max(free + int(pages.get("inactive_file", 0)) + int(pages.get("active_file", 0)), 0)
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None


def fill(model: nn.Module, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> None:
    """Puts tensors into a model; parameters on the meta device get their memory, type unchanged.

    Every tensor is copied once, straight to its place; those of a memory-mapped file are read only then.

    Args:
        tensors: by the names of the model's state dict, in its shapes and any type.
        device: where the parameters that are on the meta device go.

    Raises:
        CheckpointError: when a parameter on the meta device gets no tensor.
    """
    own = model.state_dict()
    on_meta = [name for name, tensor in own.items() if tensor.is_meta]
    if lacking := [name for name in on_meta if name not in tensors]:
        raise CheckpointError(
            f"{len(lacking)} of the model's {len(own)} tensors are not in the checkpoint ({lacking[0]} first), and a "
            "model without weights of its own takes complete checkpoints alone."
        )
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if not own[name].is_meta}, strict=False)
    if on_meta:
        placed = {name: tensors[name].to(device, own[name].dtype, copy=True) for name in on_meta}
        model.load_state_dict(placed, strict=False, assign=True)


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
