"""Runs the training tool as its users do: in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TOOL = str(ROOT / "tools" / "lazyconfig_train_net.py")
TINY = str(ROOT / "tests" / "engine" / "tiny_config.py")


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def start(*arguments: str, launcher: tuple[str, ...] = (), **kwargs) -> subprocess.Popen:
    command = [sys.executable, *launcher, TOOL, *arguments]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def run(*arguments: str, launcher: tuple[str, ...] = (), status: int = 0) -> str:
    """Runs the tool to its end and returns what it printed."""
    process = start(*arguments, launcher=launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, f"status {process.returncode}:\n{output}"
    return output


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Where two checkpoints differ, to the bit; times apart."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}.{key}" for key in a.keys() ^ b.keys()]
        for key in a.keys() & b.keys() - {"seconds"}:
            found += differences(a[key], b[key], f"{where}.{key}")
        return found
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]
