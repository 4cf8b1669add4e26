"""What became of the trainings below a folder: the state of their jobs joined with what they have written."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tabulate import tabulate
from yaml import YAMLError

from ..engine.evaluate import EVAL_FILE
from ..engine.run_dir import CONFIG
from ..engine.summary import SUMMARY_FILE
from ..engine.writers import METRICS_FILE
from ..errors import SlurmError
from .job import attempts
from .state import UNKNOWN, JobState, job_states, local_state

__all__ = ["Progress", "TrainingStatus", "collect", "failed", "format_table"]

logger = logging.getLogger(__name__)

# The last line of a traceback, or what the tools print instead of one.
_ERROR = re.compile(r"(error: |([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Interrupt|Exit|Stopped)\b(:|$))")
# What Slurm adds when it ends a process.
_ENDED = re.compile(r"(slurmstepd|srun): error: ")
_TAIL = 2**18  # bytes at the end of a log that are looked through


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a training has written; None is what it has not written yet.

    Attributes:
        iteration: how many it has done.
        max_iter: how many there will be.
        total_loss: of the last line that has one.
        eta_seconds: until the end, as the training estimated it.
        metric: name of what the best checkpoint is chosen by.
        best: its highest value so far.
        complete: whether the summary of a whole training, or the results of an evaluation, are there.
    """

    iteration: int | None = None
    max_iter: int | None = None
    total_loss: float | None = None
    eta_seconds: float | None = None
    metric: str | None = None
    best: float | None = None
    complete: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingStatus:
    """A training and its last job.

    Attributes:
        job_id: of the job.
        executor: ``slurm``, ``local`` or ``debug``.
        name: of the job.
        output_dir: of the training.
        folder: of the job.
        arguments: command line of the training.
        overrides: those that a sweep gave to it.
        submitted: time in ISO's form.
        job: what Slurm, or this machine, says of the job.
        progress: what the training has written.
        trouble: why it failed, in one line; empty where it has not, or nobody knows.
    """

    job_id: str
    executor: str
    name: str
    output_dir: str
    folder: Path
    arguments: tuple[str, ...]
    overrides: tuple[str, ...]
    submitted: str
    job: JobState
    progress: Progress
    trouble: str = ""

    @property
    def state(self) -> str:
        """Slurm's word for the state of the job."""
        return self.job.state

    @property
    def going_on(self) -> bool:
        """Waiting, running, or about to be requeued."""
        return self.job.going_on

    @property
    def finished(self) -> bool:
        """The training is complete; a job that Slurm calls COMPLETED may have ended before it was."""
        return self.progress.complete and not self.going_on


def collect(folder: str | os.PathLike) -> list[TrainingStatus]:
    """The trainings whose jobs were submitted into a folder or those below it, with the last job of each.

    Where Slurm cannot be asked, their states are UNKNOWN, with the reason.

    Args:
        folder: holds ``slurm/<job id>/job.json``, itself or in folders below.

    Returns:
        in the order of their first submission, members of a sweep in the order of the sweep.
    """
    first: dict[str, tuple] = {}
    last: dict[str, tuple[tuple, Path, Mapping[str, Any]]] = {}
    for path in Path(folder).glob("**/slurm/*/job.json"):
        record = _read(path)
        if not {"job_id", "executor", "name", "output_dir", "submitted"} <= record.keys():
            logger.warning("%s is not complete, and left out.", path)
            continue
        order, training = _order(record), record["output_dir"]
        first[training] = min(first.get(training, order), order)
        if training not in last or last[training][0] < order:
            last[training] = order, path.parent, record
    jobs = [last[training][1:] for training in sorted(first, key=lambda training: first[training])]
    states = _states(jobs)
    return [_status(path, record, state) for (path, record), state in zip(jobs, states, strict=True)]


def failed(collected: Sequence[TrainingStatus]) -> list[TrainingStatus]:
    """Those to submit again: neither complete nor going on; those of which nobody knows are not among them."""
    return [t for t in collected if t.job.over and not t.progress.complete]


def format_table(collected: Sequence[TrainingStatus]) -> str:
    """A table, one training a line, and below it why the failed ones failed."""
    rows, notes = [], []
    for t in collected:
        p = t.progress
        what = " ".join(_short(o) for o in t.overrides) or t.name
        done = "-" if p.iteration is None else f"{p.iteration}/{p.max_iter or '?'}"
        best = "-" if p.best is None else f"{p.metric} {p.best:.4g}"
        eta = "-"
        if p.eta_seconds is not None and t.state == "RUNNING":
            eta = str(datetime.timedelta(seconds=int(p.eta_seconds)))
        rows.append((t.job_id, what, _state_text(t), t.job.restarts, done, _number(p.total_loss), best, eta))
        if note := t.trouble or (t.job.reason if t.state == UNKNOWN and not t.finished else ""):
            notes.append(f"{t.job_id}: {note}")
    head = ["job", "training", "state", "restarts", "iteration", "loss", "best", "to go"]
    return "\n".join([tabulate(rows, head, disable_numparse=True), *([""] if notes else []), *notes])


def _state_text(t: TrainingStatus) -> str:
    if t.finished:
        return "finished" if t.job.done or t.state == UNKNOWN else f"finished ({t.state})"
    if t.job.done:
        return f"{t.state}, but not finished"
    if t.going_on and t.job.reason:
        return f"{t.state} ({t.job.reason})"
    return t.state


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _order(record: Mapping[str, Any]) -> tuple:
    """Sorts by time, then by number: the jobs of an array are submitted at once."""
    return record["submitted"], *(int(n) for n in re.findall(r"\d+", str(record["job_id"])))


def _states(jobs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[JobState]:
    try:
        of_slurm = job_states(record["job_id"] for _, record in jobs if record["executor"] == "slurm")
    except SlurmError as error:
        of_slurm, unknown = {}, JobState(UNKNOWN, str(error))
    else:
        unknown = JobState(UNKNOWN)
    return [
        of_slurm.get(record["job_id"], unknown) if record["executor"] == "slurm" else _state_here(path, record)
        for path, record in jobs
    ]


def _state_here(path: Path, record: Mapping[str, Any]) -> JobState:
    if record["executor"] == "local":
        return local_state(record["job_id"], path)
    # The debug executor runs in the process that submits: nothing is left to be asked.
    outcome = next((note.get("outcome") for note in reversed(attempts(path))), None)
    if outcome == "finished":
        return JobState("COMPLETED", exit_code=0, over=True)
    return JobState(UNKNOWN, "the debug executor runs within the command that submits")


def _status(path: Path, record: Mapping[str, Any], job: JobState) -> TrainingStatus:
    arguments = tuple(record.get("arguments") or ())
    progress = _progress(record["output_dir"], arguments, record["submitted"])
    trouble = ""
    if job.over and not progress.complete:
        trouble = _trouble(path, record.get("log") or "", job)
    return TrainingStatus(
        job_id=record["job_id"],
        executor=record["executor"],
        name=record["name"],
        output_dir=record["output_dir"],
        folder=path,
        arguments=arguments,
        overrides=tuple(record.get("overrides") or ()),
        submitted=record["submitted"],
        job=job,
        progress=progress,
        trouble=trouble,
    )


def _progress(output_dir: str, arguments: Sequence[str], submitted: str) -> Progress:
    root = Path(output_dir)
    if "--eval-only" in arguments:
        path = root / EVAL_FILE
        return Progress(complete=path.is_file() and path.stat().st_mtime >= _seconds(submitted))
    settings = _settings(root, arguments)
    max_iter, metric = settings.get("max_iter"), settings.get("metric")
    summary = _read(root / SUMMARY_FILE)
    done = summary.get("iterations")
    if done is not None and done >= (max_iter or 0):
        last = dict(_last_values(root / METRICS_FILE, None)[0])
        metric = summary.get("best_metric") or metric
        return Progress(done, max_iter or done, last.get("total_loss"), None, metric, summary.get("best_value"), True)
    # The summary of a shorter training that goes on, or none.
    last, best = _last_values(root / METRICS_FILE, metric)
    results = _read(root / EVAL_FILE)
    if metric and isinstance(results.get("results"), dict):
        value = flatten_results_dict(results["results"]).get(metric)
        best = max((v for v in (best, value) if _is_number(v)), default=None)
    iteration = last.get("iteration")
    if iteration is not None:
        iteration = min(iteration + 1, max_iter or iteration + 1)  # the storage counts from 0
    return Progress(iteration, max_iter, last.get("total_loss"), last.get("eta_seconds"), metric, best)


def _settings(root: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """``max_iter`` and ``metric`` of the config that the training uses, or was submitted with."""
    paths = [root / CONFIG]
    if "--config-file" in arguments[:-1]:
        # What was submitted last counts: it may go on where a shorter training ended.
        paths.insert(0, Path(arguments[arguments.index("--config-file") + 1]))
    for path in paths:
        if path.suffix != ".yaml" or not path.is_file():
            continue
        try:
            cfg = OmegaConf.load(path)
            max_iter = OmegaConf.select(cfg, "train.max_iter")
            enabled = OmegaConf.select(cfg, "train.best_checkpointer.enabled", default=True)
            metric = OmegaConf.select(cfg, "train.best_checkpointer.metric") if enabled else None
            return {"max_iter": max_iter, "metric": metric}
        except (OSError, YAMLError, OmegaConfBaseException) as error:
            logger.warning("%s cannot be read: %s", path, error)
    return {}


def _last_values(path: Path, metric: str | None) -> tuple[dict[str, Any], float | None]:
    """The last known values of a training's metrics, and the highest one of a metric.

    Lines that a kill, a full disk or a copy cut short are passed over.
    """
    last: dict[str, Any] = {}
    values = []
    marker = json.dumps(metric) if metric else None
    tail: collections.deque[str] = collections.deque(maxlen=10)
    for line in _lines(path):
        if marker and marker in line:
            values.append(_parse(line).get(metric))
        tail.append(line)
    for line in tail:
        known = _parse(line)
        last |= {key: known[key] for key in ("iteration", "total_loss", "eta_seconds") if _is_number(known.get(key))}
    return last, max((v for v in values if _is_number(v)), default=None)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as f:
            yield from f
    except OSError:
        return


def _parse(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) and "iteration" in content else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _seconds(time: str) -> float:
    try:
        return datetime.datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def _trouble(folder: Path, log: str, job: JobState) -> str:
    """Why a job failed: what its last attempt noted, else the last error in the log of its first process."""
    notes = attempts(folder)
    if notes and notes[-1].get("outcome") == "refused" and notes[-1].get("reason"):
        return _one_line(notes[-1]["reason"])
    error = ended = None
    for line in _tail(Path(log)):
        if _ERROR.match(line):
            error = line
        elif _ENDED.match(line):
            ended = line
    # What the training says of itself tells more than that it was ended because of it.
    # A job that was cancelled before it ran keeps the reason for which it waited.
    why = "cancelled" if job.state == "CANCELLED" else job.reason
    return _one_line(error or ended or why or f"no error in {log or 'a log'}")


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL))
            return f.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _one_line(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
