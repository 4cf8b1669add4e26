"""The tiny training as a job of the tests' cluster: sends it, follows it, strikes it, and compares what it leaves."""

from __future__ import annotations

import functools
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from piip.slurm import cli
from tests.engine.running import TINY, differences, load, metrics, train
from tests.slurm.cluster import SlurmCluster

__all__ = ["Job", "Recovery", "assert_undisturbed", "submit"]

TWO_NODES = ("--nodes", "2", "--time", "20")
_RESUMED = r"Resumed from \S*/model_(\d+)\.pth"


@dataclass(frozen=True)
class Recovery:
    """What a fault cost.

    Attributes:
        fault: what it was.
        noticed: seconds until the job was no longer running, or a log told of it.
        repeated: iterations that were done, and had to be done again.
        again: seconds until it had done the next new iteration after resuming.
    """

    fault: str
    noticed: float
    repeated: int
    again: float


@dataclass(frozen=True)
class Job:
    """A job that trains.

    Attributes:
        cluster: that it runs on.
        number: of the job.
        output: folder of the training.
    """

    cluster: SlurmCluster
    number: str
    output: Path

    @property
    def folder(self) -> Path:
        return self.output / "slurm" / self.number

    def log(self) -> str:
        """What its first process has printed so far, in all attempts."""
        path = self.folder / f"{self.number}_0_log.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def done(self) -> int:
        """Number of iterations that the last line of the metrics knows of."""
        lines = metrics(self.output) if (self.output / "metrics.json").exists() else []
        return lines[-1]["iteration"] + 1 if lines else 0

    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def wait_for(self, reached: Callable[[], object], timeout: float = 120) -> None:
        """Waits until something is so; the job must not end before."""
        self.cluster.wait(self.number, lambda fields: bool(reached()), timeout)

    def wait_for_iteration(self, number: int) -> None:
        self.wait_for(lambda: self.done() >= number and self.cluster.job(self.number)["JobState"] == "RUNNING")

    def finish(self, timeout: float = 120) -> None:
        self.cluster.wait(self.number, "COMPLETED", timeout)

    def recover(self, fault: str, strike: Callable[[], object], meanwhile: Callable[[], object] = bool) -> Recovery:
        """Strikes, and follows the job until it trains again without any help.

        Args:
            fault: its name.
            strike: does it.
            meanwhile: is called while the job waits for its next attempt.
        """
        restarts, resumed = self.restarts(), len(re.findall(_RESUMED, self.log()))
        begin, done = time.monotonic(), self.done()
        strike()

        def left() -> bool:
            fields = self.cluster.job(self.number)
            return fields["JobState"] != "RUNNING" or int(fields["Restarts"]) > restarts

        self.wait_for(left)
        noticed = time.monotonic() - begin
        meanwhile()

        def resumes() -> bool:
            nonlocal done
            if len(re.findall(_RESUMED, self.log())) == resumed:
                done = max(done, self.done())
                return False
            return True

        self.wait_for(resumes)
        start = int(re.findall(_RESUMED, self.log())[-1]) + 1
        self.wait_for(lambda: f" iter {start + 1}/" in re.split(_RESUMED, self.log())[-1])
        assert self.restarts() == restarts + 1
        return Recovery(fault, noticed, done - start, time.monotonic() - begin)


def submit(cluster: SlurmCluster, output: Path, *overrides: str, options: tuple[str, ...] = TWO_NODES) -> Job:
    """Sends the tiny training through ``tools/submit.py``'s command line.

    Args:
        cluster: where to.
        output: folder of the training.
        overrides: of the config.
        options: before the ``--``.
    """
    training = ["--config-file", TINY, f"train.output_dir={output}", "train.log_period=1", *overrides]
    assert cli.main([*options, "--", *training]) == 0
    (note,) = output.glob("slurm/*/job.json")
    return Job(cluster, note.parent.name, output)


@functools.cache
def undisturbed(*overrides: str) -> Path:
    """The folder of a training of two processes that nothing happened to."""
    folder = _folder()
    train(folder, "train.log_period=1", *overrides, processes=2)
    return folder


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="undisturbed-")


def _folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_root().name))


def assert_undisturbed(output: Path, *overrides: str) -> None:
    """A training has ended with the bits of one that nothing happened to, and its metrics tell every iteration once."""
    reference = undisturbed(*overrides)
    assert differences(load(output / "model_final.pth"), load(reference / "model_final.pth")) == []
    assert [line["iteration"] for line in metrics(output)] == [line["iteration"] for line in metrics(reference)]
