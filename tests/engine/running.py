"""Runs the training tool as its users do, and compares what it leaves."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TOOL = str(ROOT / "tools" / "lazyconfig_train_net.py")
TINY = str(ROOT / "tests" / "engine" / "tiny_config.py")


def environment() -> dict[str, str]:
    """One thread, and the tests importable."""
    paths = [str(ROOT), str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.engine.fork_server"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


@dataclass(frozen=True)
class Run:
    """A finished run of the tool: exit status (negative: the signal that ended it) and what it printed."""

    status: int
    output: str


def run_tool(
    *arguments: str,
    folder: Path | str = "",
    kill_at_event: int | None = None,
    kill_after: float | None = None,
    kill_with: int = signal.SIGKILL,
    processes: int = 1,
    script: Path | str = TOOL,
) -> Run:
    """Runs the tool, or another script, in a process of its own, see ``fork_server``."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as output:
        request = {
            "arguments": list(arguments),
            "output": output.name,
            "folder": str(folder),
            "kill_at_event": kill_at_event,
            "kill_after": kill_after,
            "kill_with": kill_with,
            "processes": processes,
            "script": str(script),
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        return Run(json.loads(answer), output.read())


def train(
    output_dir: Path | str,
    *overrides: str,
    config: str = TINY,
    resume: bool = False,
    processes: int = 1,
    **kill: float,
) -> Run:
    """Trains, by default the tiny model; a run that is not to be killed must succeed."""
    options = ["--config-file", config, *(["--resume"] if resume else [])]
    arguments = [*options, f"train.output_dir={output_dir}", *overrides]
    run = run_tool(*arguments, folder=output_dir, processes=processes, **kill)
    assert run.status == 0 or (kill and run.status in (-9, 128 + kill.get("kill_with", 0))), run.output
    return run


def fail(*arguments: str, script: Path | str = TOOL) -> str:
    """Runs the tool, or another script, with something wrong; returns the one line in which it says so."""
    run = run_tool(*arguments, script=script)
    assert run.status == 2, run.output
    assert "Traceback" not in run.output, run.output
    lines = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run.output
    return lines[0]


def metrics(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def damage(path: Path) -> None:
    """Changes one byte of a checkpoint, in the middle of a tensor."""
    with zipfile.ZipFile(path) as archive:
        tensor = max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len)
    content = bytearray(path.read_bytes())
    content[content.index(tensor) + len(tensor) // 2] ^= 0xFF
    path.write_bytes(content)


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
