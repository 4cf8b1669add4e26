"""What the machine can do at most: how fast it copies and multiplies matrices, to which times are compared."""

from __future__ import annotations

from functools import cache

import torch

from .timing import Settings, in_turns

__all__ = ["floor"]

_MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
_COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes, more than any cache holds


@cache
def floor(device: str, threads: int) -> dict[str, float]:
    """Best rates of this process: measured once, in turns.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        threads: of the CPU, for which the answer holds.

    Returns:
        ``copy_gb_s``: billions of bytes read and written per second in a copy; ``float32_gflops``,
        ``bfloat16_gflops`` and on a GPU ``float16_gflops``: billions of operations per second, two per multiply-add, in
        a product of square matrices.
    """
    side = _MATRIX[device]
    source = torch.ones(_COPIED[device] // 4, device=device)
    target = torch.zeros_like(source)
    ways = {"copy": lambda: target.copy_(source)}
    names = ["float32", "bfloat16"]
    if device == "cuda":
        names.append("float16")  # for which some CPUs take seconds
    for name in names:
        matrix = torch.randn(side, side, device=device).to(getattr(torch, name))
        ways[name] = lambda matrix=matrix: matrix @ matrix
    with torch.inference_mode():
        times = {name: t.minimum / 1000 for name, t in in_turns(ways, Settings(device, rounds=5, seconds=0.05)).items()}
    return {
        "copy_gb_s": 2 * source.nbytes / times["copy"] / 1e9,
        **{f"{name}_gflops": 2 * side**3 / times[name] / 1e9 for name in names},
    }
