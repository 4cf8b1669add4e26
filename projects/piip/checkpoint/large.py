"""Weights for models that are as large as the memory: announced before they are read, and never held twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

__all__ = ["available_memory", "check_memory", "fill", "meta_bytes"]

# Files of a control group with its limit, its use, and what the use consists of: versions 2 and 1.
_CGROUP_V2 = ("memory.max", "memory.current", "memory.stat")
_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def check_memory(model: nn.Module, device: str | torch.device = "cpu", copies: int = 1, shards: int = 1) -> None:
    """Refuses a model whose parameters wait on the meta device when the memory cannot take them.

    Args:
        model: whose parameters are to come to ``device``.
        copies: how often they are held there: a training also holds gradients and what its optimizer remembers.
        shards: how many devices share them.

    Raises:
        CheckpointError: with what is needed and what is available.
    """
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if p.is_meta and not p.requires_grad)
    needed, available = (copies * meta_bytes(model) - (copies - 1) * frozen) // shards, available_memory(device)
    if available is None or needed <= available:
        return
    dtypes = {p.dtype for p in model.parameters() if p.is_meta}
    in_bfloat16 = sum(2 * p.numel() for p in model.parameters() if p.is_meta)
    half = copies == 1 and in_bfloat16 < needed and in_bfloat16 <= available
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    extra = "" if copies == 1 else ", their gradients and the optimizer"
    remedy = "use a machine with more memory"
    if half:
        remedy = f'piip.model_zoo.get(name, trained=True, dtype="bfloat16") needs {_gib(in_bfloat16)}'
    raise CheckpointError(
        f"the model needs {_gib(needed)} for its weights in {names}{extra}, and {_gib(available)} are available on "
        f"{device}; {remedy}."
    )


def meta_bytes(model: nn.Module) -> int:
    """The memory that the parameters on the meta device will take."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.is_meta)


def available_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can still be allocated on a device; None where nobody knows."""
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    found = [_system_memory(), *_cgroup_memory()]
    return min((n for n in found if n is not None), default=None)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return None


def _cgroup_memory(own: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[int]:
    """What the control groups that this process is confined to have left: those of a container or a batch job.

    File pages, which they can drop, count as free.
    """
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, files = (Path(root, "memory"), _CGROUP_V1) if controllers else (Path(root), _CGROUP_V2)
        for group in (inner := Path(path.lstrip("/")), *inner.parents):
            limit, used, stat = (top / group / name for name in files)
            try:
                pages = dict(entry.split() for entry in stat.read_text().splitlines())
                files_held = int(pages.get("inactive_file", 0)) + int(pages.get("active_file", 0))
                left.append(max(int(limit.read_text()) - int(used.read_text()) + files_held, 0))
            except (OSError, ValueError):  # no such group, or one without a limit ("max")
                continue
    return left


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
