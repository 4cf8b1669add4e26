"""Runs the training tool many times for the price of one start: every run is a fork of a process with all imports.

Reads requests from stdin, one JSON object a line, and answers with the exit status (negative: ended by that signal).
A run can be told to kill itself in the middle, as a machine that fails would do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from typing import NoReturn

# Imported once, here, instead of in every run.
import torch.utils.tensorboard  # noqa: F401

import piip.checkpoint.sharded
import piip.engine.train
import piip.visualization.report  # noqa: F401
from tests.engine.running import TOOL

_LIMIT_S = 600


def run(
    arguments: list[str],
    output: str,
    folder: str = "",
    kill_at_event: int | None = None,
    kill_after: float | None = None,
    kill_with: int = signal.SIGKILL,
    processes: int = 1,
    script: str = TOOL,
) -> int:
    """Runs the tool in a child process, or in several with the environment that torchrun gives them.

    Args:
        arguments: of the command line.
        output: file for what it prints.
        folder: where file operations count as events.
        kill_at_event: kills itself just before the so-manieth opening, renaming or removing of a file.
        kill_after: kills itself after so many seconds.
        kill_with: the signal that it sends itself.
        processes: how many there are.
        script: what to run in place of the tool.

    Returns:
        the status of the first process that did not succeed, or 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        if processes > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            os.environ.update(LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        _run_and_exit(script, arguments, output, folder, kill_at_event, kill_after, kill_with)
    # One that waits for ever would stop the tests.
    limit = threading.Timer(_LIMIT_S, _kill, [children])
    limit.start()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    limit.cancel()
    return next((status for status in statuses if status), 0)


def _kill(children: list[int]) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _run_and_exit(
    script: str,
    arguments: list[str],
    output: str,
    folder: str,
    kill_at_event: int | None,
    kill_after: float | None,
    kill_with: int,
) -> NoReturn:
    with open(output, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    events = 0

    def hook(event: str, details: tuple) -> None:
        nonlocal events
        if event in ("open", "os.rename", "os.remove") and str(details[0]).startswith(folder):
            events += 1
            if events == kill_at_event:
                os.kill(os.getpid(), kill_with)

    if kill_at_event is not None:
        sys.addaudithook(hook)
    if kill_after is not None:
        threading.Timer(kill_after, os.kill, (os.getpid(), kill_with)).start()
    status = 1
    try:
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
