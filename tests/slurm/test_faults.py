"""A training that loses its job, processes, machines or disk goes on by itself, and ends with the same bits."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.running import damage
from tests.slurm.cluster import SlurmCluster
from tests.slurm.training import Job, Recovery, assert_undisturbed, submit

pytestmark = pytest.mark.slurm
slow = pytest.mark.slow

STEPS = "train.max_iter=40"
PAUSE = "model.pause=0.25"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Recovery], None]]:
    """Collects what faults cost; printed at the end (``pytest -s``) and written to ``faults.md``."""
    rows: list[str] = []

    def add(found: Recovery) -> None:
        rows.append(f"| {found.fault} | {found.noticed:.1f} s | {found.repeated} | {found.again:.0f} s |")
        print(rows[-1], flush=True)

    yield add
    head = ["| Fault | Noticed after | Iterations repeated | Trains again after |", "|---|---|---|---|"]
    text = "\n".join([*head, *rows])
    (tmp_path_factory.getbasetemp() / "faults.md").write_text(text + "\n")
    print(f"\n{text}")


def kill(job: Job, rank: int) -> None:
    os.kill(job.cluster.task(job.number, rank), signal.SIGKILL)


def newest(output: Path) -> Path:
    return output / (output / "last_checkpoint").read_text()


def test_a_warning_and_a_lost_process_with_a_corrupt_checkpoint(
    cluster: SlurmCluster, tmp_path: Path, table: Callable
) -> None:
    job = submit(cluster, tmp_path, STEPS, PAUSE)
    job.wait_for_iteration(6)
    warned = job.recover("preemption signal (USR2)", lambda: cluster.signal(job.number))
    table(warned)
    assert warned.repeated == 0, "all processes stop at the same iteration, which is saved"
    job.wait_for_iteration(18)
    killed = job.recover(
        "`kill -9` of one process, newest checkpoint corrupt", lambda: kill(job, 1), lambda: damage(newest(tmp_path))
    )
    table(killed)
    assert "Resuming from the older" in job.log()
    job.finish()
    assert_undisturbed(tmp_path, STEPS)


@slow
def test_requeue_by_hand_and_a_lost_first_process(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    job = submit(cluster, tmp_path, STEPS, PAUSE)
    job.wait_for_iteration(6)
    table(job.recover("`scontrol requeue`", lambda: cluster.requeue(job.number)))
    job.wait_for_iteration(14)
    table(job.recover("`kill -9` of the first process", lambda: kill(job, 0)))
    job.wait_for_iteration(24)
    table(job.recover("`kill -9` of another process", lambda: kill(job, 1)))
    job.finish()
    assert_undisturbed(tmp_path, STEPS)


@slow
def test_preemption_by_a_more_important_job(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    job = submit(cluster, tmp_path, STEPS, PAUSE)
    job.wait_for_iteration(6)
    other: list[str] = []

    def strike() -> None:
        everything = ["--partition=high", "--nodes=3", "--exclusive", f"--output={tmp_path}/other.log"]
        other.append(cluster.submit(*everything, "--wrap=sleep 2"))

    found = job.recover("preemption by a partition of higher priority (its job takes 2 s)", strike)
    table(found)
    assert found.repeated == 0
    cluster.wait(other[0])
    job.finish()
    assert_undisturbed(tmp_path, STEPS)


@slow
def test_a_lost_machine(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    steps = "train.max_iter=80"
    job = submit(cluster, tmp_path, steps, "model.pause=0.4")
    job.wait_for_iteration(6)
    first, second, spare = cluster.nodes
    table(job.recover("a machine lost, with its processes", lambda: cluster.stop_node(second)))
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job.number)["NodeList"])
    assert nodes.split() == [first, spare]
    job.finish()
    assert_undisturbed(tmp_path, steps)


@slow
def test_a_machine_that_only_seems_lost(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    """Both processes run on it, and train on beside their successors."""
    steps = "train.max_iter=200"
    options = ("--tasks-per-node", "2", "--time", "20")
    job = submit(cluster, tmp_path, steps, "model.pause=0.6", options=options)
    job.wait_for_iteration(6)
    old = [cluster.task(job.number, rank) for rank in range(2)]
    table(
        job.recover(
            "a machine out of touch, whose processes go on", lambda: cluster.stop_node(cluster.nodes[0], tasks=False)
        )
    )
    job.wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in old), timeout=30)
    assert "now belongs to another training" in job.log()
    job.finish()
    assert job.restarts() == 1
    assert_undisturbed(tmp_path, steps)


@slow
def test_the_first_machine_of_two_only_seems_lost(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    """Slurm ends the process on the other one, so this one crashes; its script must leave the successor alone."""
    steps = "train.max_iter=120"
    job = submit(cluster, tmp_path, steps, "model.pause=0.4")
    job.wait_for_iteration(6)
    old = cluster.task(job.number, 0)
    table(
        job.recover("the first of two machines out of touch", lambda: cluster.stop_node(cluster.nodes[0], tasks=False))
    )
    job.wait_for(lambda: not Path(f"/proc/{old}").exists(), timeout=30)
    job.finish()
    assert job.restarts() == 1
    assert_undisturbed(tmp_path, steps)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system: run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@slow
def test_a_disk_that_is_full_for_a_while(cluster: SlurmCluster, small_disk: Path, table: Callable) -> None:
    wide = "model.width=16000"  # 2 MiB for a checkpoint
    job = submit(cluster, small_disk, STEPS, wide, PAUSE)
    job.wait_for_iteration(14)
    others = small_disk / "others"

    def fill() -> None:
        with others.open("wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass

    table(job.recover("disk full from one checkpoint to the end", fill, others.unlink))
    assert "The training goes on without this checkpoint" in job.log()
    job.finish()
    assert_undisturbed(small_disk, STEPS, wide)


@slow
def test_the_time_limit(cluster: SlurmCluster, tmp_path: Path, table: Callable) -> None:
    steps = "train.max_iter=60"
    options = ("--nodes", "2", "--time", "3", "--signal-delay", "5")
    job = submit(cluster, tmp_path, steps, "model.pause=3.5", options=options)
    job.wait_for_iteration(6)

    begin, waited = time.monotonic(), 0.0

    def limit() -> None:
        nonlocal waited
        job.wait_for(lambda: "Stopped by SIGUSR2" in job.log(), timeout=240)
        waited = time.monotonic() - begin

    found = job.recover("time limit, from the iteration that the warning ends", limit)
    table(dataclasses.replace(found, noticed=found.noticed - waited, again=found.again - waited))
    assert found.repeated == 0
    job.finish(timeout=240)
    assert_undisturbed(tmp_path, steps)
