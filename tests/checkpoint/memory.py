"""Measuring the memory of a piece of code in a process of its own."""

from __future__ import annotations

import json
import tempfile
from typing import Any

from tests.engine.running import run_tool

# Memory that is backed by a file is not counted: the system may drop it at any time.
MEASURE = """
import contextlib, json, threading

def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

@contextlib.contextmanager
def measure():
    start, peak, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous() - start)
    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    done.set()
    thread.join()
    print(json.dumps({"anonymous": max(peak[0], anonymous() - start)}))
"""


def run(code: str) -> dict[str, Any]:
    """Runs code that uses ``measure`` and returns what it printed last."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        ran = run_tool(script=script.name)
    assert ran.status == 0, ran.output
    return json.loads(ran.output.splitlines()[-1])
