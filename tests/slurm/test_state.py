"""The states of jobs: from a real controller, from the records of an accounting, and of jobs on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit

from piip.errors import SlurmError
from piip.slurm.state import JobState, _read_sacct, _read_scontrol, job_states, local_state
from tests.slurm.cluster import SlurmCluster

slurm = pytest.mark.slurm


def until(ask: Callable[[], JobState], reached: Callable[[JobState], bool], seconds: float = 60) -> list[JobState]:
    """All answers up to the one that was waited for."""
    answers = []
    deadline = time.monotonic() + seconds
    while not answers or not reached(answers[-1]):
        assert time.monotonic() < deadline, answers[-3:]
        time.sleep(0.1)
        answers.append(ask())
    return answers


@slurm
def test_ends_of_jobs(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = f"--output={tmp_path}/%j"
    good, bad, killed = (cluster.submit(log, f"--wrap={line}") for line in ("exit 0", "exit 3", "kill -9 $$"))
    waits = cluster.submit(log, "--begin=now+1hour", "--wrap=true")
    runs = cluster.submit(log, "--nodes=2", "--wrap=sleep 100")
    stopped = cluster.submit(log, "--wrap=sleep 100")
    for number in (good, bad, killed):
        cluster.wait(number, {"COMPLETED", "FAILED"})
    cluster.wait(stopped, "RUNNING")
    cluster.run("scancel", stopped)
    cluster.wait(stopped, "CANCELLED")
    cluster.wait(runs, "RUNNING")

    states = job_states([good, bad, killed, waits, runs, stopped])
    assert list(states) == [good, bad, killed, waits, runs, stopped]
    assert [s.state for s in states.values()] == ["COMPLETED", "FAILED", "FAILED", "PENDING", "RUNNING", "CANCELLED"]
    assert [s.exit_code for s in states.values()][:5] == [0, 3, 137, None, None]
    assert [s.going_on for s in states.values()] == [False, False, False, True, True, False]
    assert [s.done for s in states.values()] == [True, False, False, False, False, False]
    assert [s.failed for s in states.values()] == [False, True, True, False, False, True]
    assert states[waits].reason == "BeginTime"
    assert states[waits].nodes == ""
    assert states[runs].nodes.startswith("127.0.0.")
    assert states[bad].reason == "NonZeroExitCode"


@slurm
def test_members_of_an_array(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Those that wait share one record; the others have their own."""
    line = "--wrap=test $SLURM_ARRAY_TASK_ID != 0 || exit 7; sleep 100"
    number = cluster.submit("--array=0-5%2", f"--output={tmp_path}/%a", line)
    cluster.wait(f"{number}_0", "FAILED")
    cluster.wait(f"{number}_2", "RUNNING")
    states = job_states([f"{number}_{k}" for k in (0, 1, 2, 4, 5, 6)])
    assert [s.state for s in states.values()] == ["FAILED", "RUNNING", "RUNNING", "PENDING", "PENDING", "UNKNOWN"]
    assert states[f"{number}_0"].exit_code == 7
    assert states[f"{number}_5"].reason == "JobArrayTaskLimit"
    assert states[f"{number}_6"].over is True


@slurm
def test_a_requeued_job_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    number = cluster.submit("--requeue", f"--output={tmp_path}/log", "--wrap=sleep 100")
    cluster.wait(number, "RUNNING")
    cluster.requeue(number)
    answers = until(lambda: job_states([number])[number], lambda s: s.state == "RUNNING" and s.restarts == 1)
    assert all(s.going_on for s in answers)
    assert "PENDING" in {s.state for s in answers}


@slurm
@pytest.mark.slow
def test_a_lost_node_is_no_failure(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Slurm calls the job NODE_FAIL for a moment, and starts it on another node."""
    number = cluster.submit("--requeue", f"--output={tmp_path}/log", "--wrap=sleep 100")
    node = cluster.wait(number, "RUNNING")["NodeList"]
    cluster.stop_node(node, tasks=False)  # otherwise its slurmstepd may report the end of the task
    answers = until(lambda: job_states([number])[number], lambda s: s.state == "RUNNING" and s.restarts == 1)
    assert all(s.going_on for s in answers)
    assert answers[-1].nodes != node


@slurm
def test_a_forgotten_job(cluster: SlurmCluster) -> None:
    state = job_states(["999999999"])["999999999"]
    assert state.state == "UNKNOWN"
    assert state.reason.startswith("Slurm has forgotten the job, and its accounting does not help (")
    assert (state.over, state.going_on, state.done, state.failed) == (True, False, False, False)


@slurm
@pytest.mark.slow
def test_a_controller_that_does_not_answer(cluster: SlurmCluster, tmp_path: Path, monkeypatch) -> None:
    """Nothing is concluded from that: the job may well be running."""
    conf = tmp_path / "slurm.conf"
    conf.write_text(cluster.conf.read_text().replace("MessageTimeout=5", "MessageTimeout=1"))
    port = next(line for line in conf.read_text().splitlines() if line.startswith("SlurmctldPort="))
    conf.write_text(conf.read_text().replace(port, "SlurmctldPort=1"))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    state = job_states(["1"])["1"]
    assert state.state == "UNKNOWN"
    assert "contact" in state.reason
    assert (state.over, state.going_on, state.failed) == (None, False, False)


def test_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states([]) == {}
    with pytest.raises(SlurmError, match="state of job 7 cannot be asked for: there is no Slurm here"):
        job_states(["7"])


def test_records_of_an_accounting() -> None:
    """As sacct prints them: a line for every attempt."""
    states = _read_sacct(
        "7|NODE_FAIL|0:0|n[1-2]\n7|PREEMPTED|0:0|n[1-2]\n7|COMPLETED|0:0|n[3-4]\n"
        "8_0|FAILED|2:0|n1\n8_1|OUT_OF_MEMORY|0:125|n2\n9|CANCELLED by 1000|0:0|None assigned\n10|RUNNING|0:0|n1\n\n"
    )
    assert states == {
        "7": JobState("COMPLETED", "", 2, "n[3-4]", 0, True),
        "8_0": JobState("FAILED", "", 0, "n1", 2, True),
        "8_1": JobState("OUT_OF_MEMORY", "", 0, "n2", 253, True),
        "9": JobState("CANCELLED", "by 1000", 0, "", 0, True),
        "10": JobState("RUNNING", "", 0, "n1", None, False),
    }


def test_a_lost_node_long_ago_is_a_failure() -> None:
    line = "JobId=5 JobName=a JobState=NODE_FAIL Reason=None Requeue=1 Restarts=0 ExitCode=1:0 EndTime={} NodeList=n1\n"
    (_, before), (_, now) = (
        next(_read_scontrol(line.format(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - ago)))))
        for ago in (3600, 1)
    )
    assert (before.failed, before.going_on) == (True, False)
    assert (now.failed, now.going_on) == (False, True)
    (_, never) = next(_read_scontrol(line.replace("Requeue=1", "Requeue=0").format("Unknown")))
    assert never.failed


def test_pending_members_with_steps() -> None:
    line = "JobId=5 ArrayJobId=5 ArrayTaskId=1,4-8:2%4 JobState=PENDING Reason=Priority Restarts=0 NodeList=(null)"
    assert [job for job, _ in _read_scontrol(line)] == ["5_1", "5_4", "5_6", "5_8"]


def wait_here(process: subprocess.Popen) -> None:
    process.wait(timeout=60)


def test_jobs_on_this_machine(tmp_path: Path) -> None:
    executor = submitit.LocalExecutor(tmp_path / "%j")
    executor.update_parameters(timeout_min=2)
    good, bad = executor.submit(os.getpid), executor.submit(int, "word")
    long = executor.submit(time.sleep, 100)
    states = until(lambda: local_state(long.job_id, long.paths.folder), lambda s: s.going_on)
    assert states[-1].state == "RUNNING"
    for job in (good, bad):
        job.wait()
        wait_here(job._process)
    assert local_state(good.job_id, good.paths.folder) == JobState("COMPLETED", exit_code=0, over=True)
    state = local_state(bad.job_id, bad.paths.folder)
    assert (state.state, state.failed) == ("FAILED", True)
    # Without a word: the controller and its process are killed.
    child = Path(f"/proc/{long.job_id}/task/{long.job_id}/children").read_text().split()
    for number in (long.job_id, *child):
        os.kill(int(number), signal.SIGKILL)
    wait_here(long._process)
    state = local_state(long.job_id, long.paths.folder)
    assert (state.state, state.reason) == ("FAILED", "its processes ended without a result")
    assert local_state(str(os.getpid()), tmp_path).state == "FAILED"  # a number that another process has by now
