"""What runs inside a job: the start of its processes, orderly stops, and the decision to go on.

Every attempt of a job leaves ``attempt-<number>.json`` in the job's folder; ``SLURM_RESTART_COUNT`` is its number.
Resuming depends on nothing but the checkpoints: a job whose machine died has not been able to say anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TemporaryError, UserError
from ..stopping import Stopped, stop_request

__all__ = ["TrainingJob", "after_attempt", "attempts"]


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The function that submitit pickles: plain values alone, so that every version of the code can read it.

    Args:
        arguments: of the training tool.
        output_dir: of the training.
        folder: of the jobs; ``<folder>/<job id>`` is this one's.
        gpus: that were asked for on each machine.
    """

    arguments: tuple[str, ...]
    output_dir: str
    folder: str
    gpus: int = 0

    def __call__(self) -> None:
        """Trains; the last checkpoint in the output folder, where there is one, is the beginning."""
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's own handler
        stop_request.listen()
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        environment = JobEnvironment()
        attempt = _Attempt(self.folder, environment.job_id, environment.global_rank)
        attempt.started(self.output_dir)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        _find_one_another(environment)
        try:
            from detectron2.engine import default_argument_parser

            from ..engine.train import main

            _require_gpus(self.gpus)
            main(default_argument_parser().parse_args(self.arguments))
        except Stopped as stop:
            if stop.code != 128 + signal.SIGUSR2:
                raise  # SIGTERM: whoever sent it has already decided what becomes of the job
            if environment.global_rank == 0:
                attempt.ended("requeued")
                _requeue(requeue)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if not isinstance(error, TemporaryError):
                attempt.ended("refused", str(error))  # the next attempt would meet the same
            sys.exit(2)
        else:
            attempt.ended("finished")

    def checkpoint(self) -> Any:
        """What submitit starts after a requeue: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _require_gpus(count: int) -> None:
    import torch

    if (usable := torch.cuda.device_count() if count else 0) < count:
        raise ConfigError(
            f"the job was to get {count} GPU(s) on each machine, but on {socket.gethostname()} torch "
            f"{torch.__version__} can use {usable}; check the driver and the build of torch there, or submit without "
            "--gpus-per-node and with train.device=cpu."
        )


def _find_one_another(environment: Any) -> None:
    """Makes the address of the first process one that works here, and the port one of this attempt alone."""
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError:
        address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")  # the latter for this machine alone
        print(f"{os.environ['MASTER_ADDR']} does not resolve on {socket.gethostname()}; using {address}.", flush=True)
        os.environ["MASTER_ADDR"] = address
    # The processes of an attempt that was given up for lost may still hold the port.
    os.environ["MASTER_PORT"] = str(20000 + (int(os.environ["MASTER_PORT"]) + 7 * _restarts()) % 40000)
    os.environ["PIIP_HOSTS"] = ",".join(environment.hostnames)


def _requeue(handler: Any) -> None:
    try:
        handler(signal.SIGUSR2, None)  # ends the process
    except subprocess.SubprocessError as error:
        # Slurm requeues by itself what it preempts, and then refuses to do it twice.
        print(
            f"scontrol requeue failed ({error}); if Slurm has not requeued the job itself, submit it again.", flush=True
        )
        sys.exit(128 + signal.SIGUSR2)


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


class _Attempt:
    """The note of one attempt; its first process writes the beginning, whoever knows it the end."""

    def __init__(self, folder: str, job_id: str, rank: int):
        self._path = _path(folder, job_id)
        self._rank = rank

    def started(self, output_dir: str) -> None:
        if self._rank == 0:
            nodes = os.environ.get("SLURM_JOB_NODELIST", "")
            _write(self._path, {"output_dir": output_dir, "nodes": nodes, "started": time.time()})

    def ended(self, outcome: str, reason: str = "") -> None:
        if self._rank == 0 or outcome == "refused":
            _write(self._path, {**_read(self._path), "outcome": outcome, "reason": reason, "ended": time.time()})


def attempts(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The notes of a job's attempts, the first one first.

    Args:
        folder: of the job.
    """
    paths = sorted(Path(folder).glob("attempt-*.json"), key=lambda p: int(p.stem.partition("-")[2]))
    return [_read(path) for path in paths]


def after_attempt(folder: str, max_crashes: int, status: int) -> int:
    """Called by the job's script when its processes have ended; requeues a job that was not done.

    Args:
        folder: of the jobs.
        max_crashes: how often in a row a job may fail without a new checkpoint.
        status: exit status of the processes.

    Returns:
        the exit status of the script.
    """
    job_id = _job_id()
    path = _path(folder, job_id)
    note = _read(path)
    if status == 0 or note.get("outcome") in ("finished", "refused", "requeued"):
        return status
    saved = os.path.join(note.get("output_dir", ""), "last_checkpoint")
    progress = os.path.isfile(saved) and os.path.getmtime(saved) > note.get("started", time.time())
    _write(
        path, {**note, "outcome": "crashed", "reason": f"status {status}", "progress": progress, "ended": time.time()}
    )
    in_vain = 0
    for earlier in reversed(attempts(os.path.join(folder, job_id))):
        if earlier.get("outcome") != "crashed" or earlier.get("progress"):
            break
        in_vain += 1
    if in_vain > max_crashes:
        _say(
            f"Not requeued: {in_vain} attempts in a row ended without a new checkpoint, the last with status {status}."
        )
        return status
    shown = subprocess.run(["scontrol", "-o", "show", "job", job_id], capture_output=True, text=True, check=False)
    # Slurm may already be ending or requeueing the job; and where this machine was given up for lost, what runs is the
    # next attempt, on others.
    fields = dict(field.partition("=")[::2] for field in shown.stdout.split())
    if (fields.get("JobState"), fields.get("Restarts")) != ("RUNNING", str(_restarts())):
        return status
    _say(f"The attempt ended with status {status}; requeueing.")
    subprocess.run(["scontrol", "requeue", job_id], check=False)
    return status


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may be on a disk that is full
        print(text, flush=True)


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _path(folder: str, job_id: str) -> Path:
    return Path(folder, job_id, f"attempt-{_restarts()}.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write(path: Path, content: dict[str, Any]) -> None:
    # The package's own writer needs torch, for which there is no time here.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            json.dump(content, f)
        os.replace(f.name, path)
    except OSError as error:  # a full disk must not decide what becomes of the job
        _say(f"{path} could not be written: {error}")


if __name__ == "__main__":
    sys.exit(after_attempt(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
