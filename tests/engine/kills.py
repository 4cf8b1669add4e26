"""Trains in forked processes that kill themselves, so that many kills take little time.

``python kills.py REFERENCE_DIR KILLED_DIR``: one undisturbed training, and one that is killed and resumed until it is
through.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import traceback

import torch.utils.tensorboard  # noqa: F401 - imported here, once, instead of in every training

from piip.engine.train import main
from tests.engine.running import TINY


def train(output_dir: str, resume: bool, kill_at_event: int | None = None, kill_after: float | None = None) -> bool:
    """Trains in a child process and tells whether it came to its end.

    Args:
        kill_at_event: the child kills itself just before it opens, renames or removes its so-manieth file.
        kill_after: or after so many seconds.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            return False
        assert os.WEXITSTATUS(status) == 0, status
        return True
    events = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal events
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(output_dir):
            events += 1
            if events == kill_at_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if kill_after is not None:
        threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        main(
            argparse.Namespace(
                config_file=TINY, resume=resume, eval_only=False, num_gpus=1, num_machines=1, machine_rank=0,
                dist_url="", opts=[f"train.output_dir={output_dir}", "train.max_iter=40"],
            )
        )  # fmt: skip
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill_and_resume(reference_dir: str, killed_dir: str) -> None:
    assert train(reference_dir, resume=False)
    draw = random.Random(0)
    kills = 0
    while kills < 60:
        timed = kills % 4 == 3
        limit = {"kill_after": draw.uniform(0.1, 1.0)} if timed else {"kill_at_event": draw.randrange(3, 30)}
        if train(killed_dir, resume=kills > 0, **limit):
            break
        kills += 1
    print(f"{kills} kills", flush=True)


if __name__ == "__main__":
    kill_and_resume(sys.argv[1], sys.argv[2])
