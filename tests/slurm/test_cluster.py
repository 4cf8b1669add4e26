"""The cluster of the tests does what the tests of the launcher rely on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import submitit

from tests.slurm.cluster import SlurmCluster

# What uses the cluster tests it, too; these take a minute.
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def submit(cluster: SlurmCluster, log: Path, line: str, *options: str) -> str:
    """A job of one task on each of two nodes that run a line of shell."""
    return cluster.submit("--nodes=2", "--open-mode=append", f"--output={log}", *options, f"--wrap=srun sh -c '{line}'")


def lines(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.exists() else []


def wait_for(log: Path, line: str, count: int = 1) -> None:
    deadline = time.monotonic() + 20
    while lines(log).count(line) < count:
        assert time.monotonic() < deadline, lines(log)
        time.sleep(0.05)


def test_a_job_on_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "a log"
    line = "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    job = cluster.wait(submit(cluster, log, line, "--gpus-per-node=2", "--comment=x=1, y 2"))
    assert lines(log) == [f"0 {cluster.nodes[0]} 0,1", f"1 {cluster.nodes[1]} 0,1"]
    assert (job["NumNodes"], job["StdOut"], job["Comment"]) == ("2", str(log), "x=1, y 2")


def test_what_cannot_run_is_refused(cluster: SlurmCluster) -> None:
    for option in ("--nodes=4", "--gpus-per-node=3", "--partition=other", "--time=120"):
        with pytest.raises(AssertionError, match=r"sbatch.*status 1"):
            cluster.submit(option, "--wrap=true")


def test_a_job_through_submitit(cluster: SlurmCluster, tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(tmp_path / "%j", cluster="slurm")
    executor.update_parameters(nodes=2, tasks_per_node=2, timeout_min=5)
    job = executor.submit(os.getenv, "SLURM_PROCID")
    cluster.wait(job.job_id)
    assert job.results() == ["0", "1", "2", "3"]


def test_a_failed_job_is_told_with_its_log(cluster: SlurmCluster, tmp_path: Path) -> None:
    number = submit(cluster, tmp_path / "log", "echo went wrong >&2; exit 3")
    with pytest.raises(AssertionError, match=rf"(?s)job {number} is FAILED, not COMPLETED.*went wrong"):
        cluster.wait(number)


def test_a_signal_reaches_every_task_and_requeue_starts_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = 'trap "echo signal" USR2; echo start $SLURM_RESTART_COUNT; for i in $(seq 200); do sleep 0.1; done'
    number = submit(cluster, log, line)
    wait_for(log, "start", 2)
    cluster.signal(number)
    wait_for(log, "signal", 2)
    assert cluster.job(number)["JobState"] == "RUNNING"
    cluster.requeue(number)
    cluster.wait(number, lambda job: job["JobState"] == "RUNNING" and job["Restarts"] == "1")
    wait_for(log, "start 1", 2)


def test_a_task_is_found_and_killed(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    number = submit(cluster, log, "echo $SLURM_PROCID $$; exec sleep 60", "--nodes=3")
    cluster.wait(number, "RUNNING")
    deadline = time.monotonic() + 20
    while len(lines(log)) < 3:
        assert time.monotonic() < deadline
    assert lines(log) == [f"{rank} {cluster.task(number, rank)}" for rank in range(3)]
    for rank in range(3):
        os.kill(cluster.task(number, rank), signal.SIGKILL)
    cluster.wait(number, "FAILED")


@pytest.mark.slow
def test_a_job_leaves_a_lost_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    number = submit(cluster, log, "echo $SLURM_RESTART_COUNT $SLURMD_NODENAME; exec sleep 90")
    first, lost, spare = cluster.nodes
    for node in (first, lost):
        wait_for(log, node)
    task = cluster.task(number, 1)
    cluster.stop_node(lost)
    assert not Path(f"/proc/{task}").exists()
    cluster.wait(number, lambda job: job["JobState"] == "RUNNING" and job["Restarts"] == "1", timeout=90)
    for node in (first, spare):
        wait_for(log, f"1 {node}")
    cluster.start_node(lost)
    cluster.wait(submit(cluster, tmp_path / "next", "true", f"--nodelist={lost}", "--nodes=1"))


def test_tasks_survive_their_daemon(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    number = submit(cluster, log, "echo $SLURMD_NODENAME; exec sleep 90")
    node = cluster.nodes[1]
    wait_for(log, node)
    task = cluster.task(number, 1)
    cluster.stop_node(node, tasks=False)
    assert Path(f"/proc/{task}").exists()
    cluster.start_node(node)
    cluster.stop_node(node, tasks=False)
    cluster.clear()
    assert not Path(f"/proc/{task}").exists()


def test_two_clusters_at_a_time(cluster: SlurmCluster, tmp_path: Path) -> None:
    with SlurmCluster(tmp_path / "other", nodes=2) as other:
        number = other.submit("--nodes=2", f"--output={tmp_path}/log", "--wrap=srun true")
        other.wait(number)
        with pytest.raises(AssertionError, match="Invalid job id"):
            cluster.job(number)
    assert not other._processes()


@pytest.mark.usefixtures("cluster")
def test_a_daemon_that_ends_is_told_at_once(tmp_path: Path) -> None:
    broken = SlurmCluster(tmp_path)
    broken.environ["PATH"] = f"{tmp_path}/bin:{broken.environ['PATH']}"
    slurmd = tmp_path / "bin/slurmd"
    slurmd.parent.mkdir()
    slurmd.write_text("#!/bin/sh\necho this is why; exit 1\n")
    slurmd.chmod(0o755)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)slurmd.127.0.0.11 ended with 1.*this is why"), broken:
        pass
    assert time.monotonic() - begin < 15
