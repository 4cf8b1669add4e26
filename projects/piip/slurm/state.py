"""What Slurm, or this machine, says of a job: waiting, running, done, failed, or unknown and why."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pickletools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import SlurmError
from .job import attempts

__all__ = ["JobState", "job_states", "local_state"]

UNKNOWN = "UNKNOWN"
_DONE = {"COMPLETED"}
_FAILED = {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
# Slurm requeues what a lost node or a more important job ended a moment after it has said so.
_REQUEUED_AFTER = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"}
_SECONDS_UNTIL_REQUEUED = 60
_SECONDS_TO_ANSWER = 60
_FORGOTTEN = "Slurm has forgotten the job"


@dataclasses.dataclass(frozen=True)
class JobState:
    """What is known of a job.

    Attributes:
        state: Slurm's word (PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, ...), or UNKNOWN.
        reason: why it waits or has ended in Slurm's words, or why nothing is known; empty where there is none.
        restarts: how often it was requeued.
        nodes: where it runs or ran, in Slurm's notation; empty before it does.
        exit_code: of a job that has ended; 128 and the signal's number for one ended by a signal.
        over: True where it cannot run any more, False where it is going on, None where nobody knows.
    """

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    exit_code: int | None = None
    over: bool | None = None

    @property
    def going_on(self) -> bool:
        """Waiting, running, or about to be requeued."""
        return self.over is False

    @property
    def done(self) -> bool:
        """Ended, and in Slurm's eyes well."""
        return self.state in _DONE

    @property
    def failed(self) -> bool:
        """Ended otherwise."""
        return self.over is True and not self.done and self.state != UNKNOWN


def job_states(job_ids: Iterable[str]) -> dict[str, JobState]:
    """Asks Slurm's controller, which knows the present attempt of a job, and then its accounting.

    Args:
        job_ids: ``1234``, or ``1234_0`` for the member of an array.

    Returns:
        a state for each of them, UNKNOWN where neither knows the job.

    Raises:
        SlurmError: where there is no Slurm on this machine.
    """
    wanted = list(dict.fromkeys(job_ids))
    if wanted and shutil.which("scontrol") is None:
        raise SlurmError(
            f"the state of job {wanted[0]} cannot be asked for: there is no Slurm here (scontrol is not on the path); "
            "ask on a login node of the cluster."
        )
    states: dict[str, JobState] = {}
    for number in dict.fromkeys(job_id.partition("_")[0] for job_id in wanted):
        members = [job_id for job_id in wanted if job_id.partition("_")[0] == number]
        answer, error = _ask("scontrol", "-o", "show", "job", number)
        found = dict(_read_scontrol(answer))
        # The controller's word for a number that it does not know; otherwise it did not answer.
        absent = JobState(UNKNOWN, _FORGOTTEN, over=True)
        if error and "invalid job id" not in error.lower():
            absent = JobState(UNKNOWN, f"scontrol: {error}")
        states |= {job_id: found.get(job_id, absent) for job_id in members}
    if missing := [job_id for job_id, state in states.items() if state.state == UNKNOWN]:
        states |= _from_accounting(missing, states)
    return states


def _from_accounting(job_ids: list[str], states: dict[str, JobState]) -> dict[str, JobState]:
    if shutil.which("sacct") is None:
        answer, error = "", "sacct is not on the path"
    else:
        fields = "JobID,State,ExitCode,NodeList"
        # All attempts, the first one first; without the steps.
        answer, error = _ask("sacct", "-X", "-D", "-n", "-P", "-o", fields, "-j", ",".join(job_ids))
    recorded = _read_sacct(answer)
    found = {}
    for job_id in job_ids:
        state, before = recorded.get(job_id), states[job_id]
        if state is None:
            why = f"its accounting does not help ({error})" if error else "its accounting does not know it either"
            found[job_id] = dataclasses.replace(before, reason=f"{before.reason}, and {why}")
        elif before.over is None and state.state in _REQUEUED_AFTER:
            # The record of a past attempt, which may have been followed by another one.
            found[job_id] = dataclasses.replace(state, over=None, reason=before.reason)
        else:
            found[job_id] = state
    return found


def _read_scontrol(answer: str) -> Iterator[tuple[str, JobState]]:
    """The jobs in the answer of ``scontrol -o show job``, one a line."""
    for line in answer.splitlines():
        fields: dict[str, str] = {}
        for name, value in re.findall(r"(?:^| )([A-Za-z]\w*)=(\S*)", line):
            fields.setdefault(name, value)  # free text comes later, and may look like a field
        if "JobState" not in fields or "JobId" not in fields:
            continue
        state = fields["JobState"].partition(",")[0]
        over = state in _DONE | _FAILED
        if state in _REQUEUED_AFTER and fields.get("Requeue") == "1" and _just_now(fields.get("EndTime", "")):
            over = False
        job = JobState(
            state,
            _plain(fields.get("Reason", "")),
            int(fields.get("Restarts") or 0),
            _plain(fields.get("NodeList", "")),
            _exit_code(fields.get("ExitCode", "")) if over else None,
            over,
        )
        if "ArrayTaskId" in fields:
            for index in _array_indexes(fields["ArrayTaskId"]):
                yield f"{fields['ArrayJobId']}_{index}", job
        else:
            yield fields["JobId"], job


def _read_sacct(answer: str) -> dict[str, JobState]:
    """The last attempts of jobs in the answer of ``sacct``, one attempt a line."""
    found: dict[str, JobState] = {}
    for line in answer.splitlines():
        job_id, state, exit_code, nodes = (line.split("|") + [""] * 3)[:4]
        if not state:
            continue
        word, _, more = state.partition(" ")  # "CANCELLED by 1000"
        restarts = found[job_id].restarts + 1 if job_id in found else 0
        over = word in _DONE | _FAILED
        nodes = "" if nodes == "None assigned" else nodes
        found[job_id] = JobState(word, more, restarts, nodes, _exit_code(exit_code) if over else None, over)
    return found


def _array_indexes(text: str) -> Iterator[int]:
    """Members of an array that share a line because they wait: ``3``, ``5-9``, ``1,4-8:2%4``."""
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = match.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1))


def _exit_code(text: str) -> int | None:
    """Slurm's ``status:signal``."""
    status, _, number = text.partition(":")
    if not status.isdigit():
        return None
    return 128 + int(number) if number.isdigit() and int(number) else int(status)


def _plain(text: str) -> str:
    return "" if text in ("None", "(null)") else text


def _just_now(time: str) -> bool:
    try:
        ended = datetime.datetime.fromisoformat(time)
    except ValueError:
        return False
    return (datetime.datetime.now() - ended).total_seconds() < _SECONDS_UNTIL_REQUEUED


def _ask(*command: str) -> tuple[str, str]:
    """What a command answers, and what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_SECONDS_TO_ANSWER} s"
    if done.returncode == 0:
        return done.stdout, ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return done.stdout, lines[-1] if lines else f"status {done.returncode}"


def local_state(job_id: str, folder: str | os.PathLike) -> JobState:
    """The state of a job of submitit's local executor on this machine, in Slurm's words.

    Args:
        job_id: number of the process that controls it.
        folder: of the job, where submitit leaves the results of its processes.
    """
    if _controls_job(int(job_id)):
        return JobState("RUNNING", over=False)
    outcomes = [_outcome(path) for path in sorted(Path(folder).glob(f"{job_id}_*_result.pkl"))]
    noted = attempts(folder)
    if noted and noted[-1].get("outcome") == "finished" and "error" not in outcomes:
        return JobState("COMPLETED", exit_code=0, over=True)
    if not outcomes:
        return JobState("FAILED", "its processes ended without a result", over=True)
    if all(outcome == "success" for outcome in outcomes):
        return JobState("COMPLETED", exit_code=0, over=True)
    return JobState("FAILED", "a process ended with an error", over=True)


def _controls_job(process: int) -> bool:
    """Whether a process is one of submitit's controllers: numbers are used again."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return re.search(r"^State:\s*Z", status, re.MULTILINE) is None and b"submitit.local._local" in command


def _outcome(path: Path) -> str | None:
    """The first word of a result, ``success`` or ``error``, without executing what else is in the pickle."""
    try:
        with path.open("rb") as f:
            return next((arg for _, arg, _ in pickletools.genops(f) if arg in ("success", "error")), None)
    except (OSError, ValueError):
        return None
