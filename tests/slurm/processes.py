"""Finds processes by the environment that they were started with, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["end", "environment", "name_of", "parent_of", "processes", "reap"]


def processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def environment(process: int) -> dict[str, str]:
    """The variables that a process was started with; none if it has ended or is another user's."""
    try:
        content = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)


def _stat(process: int) -> tuple[str, str, int]:
    """Name, state and parent of a process; an empty name and state if it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "", "", 0
    state, parent = text[text.rindex(")") + 1 :].split()[:2]
    return text[text.index("(") + 1 : text.rindex(")")], state, int(parent)


def name_of(process: int) -> str:
    return _stat(process)[0]


def parent_of(process: int) -> int:
    return _stat(process)[2]


def end(find: Callable[[], list[int]], timeout: float = 10) -> None:
    """Kills what ``find`` returns, and what that may have started meanwhile, and waits until all is gone."""
    deadline = time.monotonic() + timeout
    left: set[int] = set()
    while (found := set(find())) or left:
        assert time.monotonic() < deadline, f"processes {found | left} cannot be ended"
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        left = {process for process in found | left if not _gone(process)}
        time.sleep(0.01)


def _gone(process: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # its parent may have to end before it becomes a child of this process
        os.waitpid(process, os.WNOHANG)
    return not _stat(process)[1]


def reap(name: str) -> None:
    """Waits for the children of this process that have this name and have ended."""
    for process in processes():
        found, state, parent = _stat(process)
        if found.startswith(name) and state == "Z" and parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)
