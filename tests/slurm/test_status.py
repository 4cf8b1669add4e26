"""Trainings below a folder: what their jobs and the files that they wrote say together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from detectron2.config import LazyConfig

from piip.engine.config import load_config
from piip.engine.run_dir import write_json
from piip.engine.summary import write_summary
from piip.slurm.status import collect, failed, format_table
from tests.slurm.cluster import SlurmCluster

TINY = Path(__file__).parents[1] / "engine" / "tiny_config.py"
METRIC = "points/accuracy"
NOBODY = "4194305"  # no process has such a number
TRACEBACK = """\
iter 7/30  eta 0:01:00
Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise ValueError("first")
ValueError: first
The above exception was the direct cause of the following exception:
Traceback (most recent call last):
  File "b.py", line 9, in train
    raise error
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate
  20 GiB
srun: error: node1: task 0: Exited with exit code 1
"""


def submitted(base: Path, job_id: str, output_dir: Path, *, time: str = "2026-01-01T10:00:00+00:00", **record) -> Path:
    """What the launcher leaves in a job's folder."""
    folder = base / "slurm" / job_id
    folder.mkdir(parents=True)
    record = {
        "job_id": job_id, "executor": "local", "name": "tiny", "output_dir": str(output_dir), "submitted": time,
        "arguments": [], "overrides": [], "revision": None, "resources": {}, "log": str(folder / f"{job_id}_0_log.out"),
    } | record  # fmt: skip
    write_json(folder / "job.json", record)
    return folder


def config(path: Path, **train: object) -> list[str]:
    cfg = load_config(str(TINY), [f"train.{key}={value}" for key, value in train.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    LazyConfig.save(cfg, str(path))
    return ["--config-file", str(path), "--resume"]


def metrics(output_dir: Path, *lines: dict[str, object], torn: str = "") -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def only(base: Path):
    (status,) = collect(base)
    return status


def test_nothing_was_submitted(tmp_path: Path) -> None:
    assert collect(tmp_path) == collect(tmp_path / "missing") == []


def test_progress_of_a_torn_file(tmp_path: Path) -> None:
    out = tmp_path / "run"
    submitted(out, NOBODY, out, arguments=config(out / "slurm/configs/tiny.yaml"))
    metrics(
        out,
        {"iteration": 4, "total_loss": 2.0, "eta_seconds": 50.0},
        {"iteration": 9, "total_loss": 1.5, "eta_seconds": 40.0, METRIC: 80.0},
        {"iteration": 14, "total_loss": float("nan"), "eta_seconds": 30.0, METRIC: 70.0},
        torn='{"iteration": 19, "total_lo',
    )
    write_json(out / "eval.json", {"iterations": 15, "results": {"points": {"accuracy": 70.0}}})
    p = only(tmp_path).progress
    assert (p.iteration, p.max_iter, p.total_loss, p.eta_seconds) == (15, 30, 1.5, 30.0)
    assert (p.metric, p.best, p.complete) == (METRIC, 80.0, False)
    # An evaluation is written before its line in the metrics.
    write_json(out / "eval.json", {"iterations": 20, "results": {"points": {"accuracy": 90.0}}})
    assert only(tmp_path).progress.best == 90.0
    for name in ("metrics.json", "eval.json"):
        (out / name).write_text("\0\0{[")
    p = only(tmp_path).progress
    assert (p.iteration, p.total_loss, p.best, p.max_iter) == (None, None, None, 30)


def test_finished_is_what_the_summary_says(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = config(out / "slurm/configs/tiny.yaml")
    folder = submitted(out, NOBODY, out, arguments=arguments)
    write_json(folder / "attempt-0.json", {"outcome": "finished"})
    metrics(out, {"iteration": 29, "total_loss": 0.5, "eta_seconds": 0.0})
    status = only(tmp_path)
    assert (status.state, status.finished) == ("COMPLETED", False)
    assert "COMPLETED, but not finished" in format_table([status])
    assert failed([status]) == [status]

    facts = {"iterations": 30, "seconds": 9.0, "best_metric": METRIC, "best_value": 91.234, "best_iteration": 20}
    write_summary(str(out), facts, {"points": {"accuracy": 88.0}})
    status = only(tmp_path)
    assert status.finished
    assert failed([status]) == []
    row = format_table([status]).splitlines()[-1].split()
    assert row == [NOBODY, "tiny", "finished", "0", "30/30", "0.5", METRIC, "91.23", "-"]

    # Submitted again with more iterations: the old summary is that of a shorter training.
    config(out / "slurm/configs/longer.yaml", max_iter=60)
    submitted(out, "4194306", out, time="2026-01-02T10:00:00+00:00",
              arguments=["--config-file", str(out / "slurm/configs/longer.yaml")])  # fmt: skip
    status = only(tmp_path)
    assert (status.job_id, status.finished, status.progress.max_iter) == ("4194306", False, 60)


def test_an_evaluation_is_finished_by_its_results(tmp_path: Path) -> None:
    arguments = [*config(tmp_path / "slurm/configs/tiny.yaml"), "--eval-only"]
    submitted(tmp_path, NOBODY, tmp_path, arguments=arguments)
    assert not only(tmp_path).progress.complete
    write_json(tmp_path / "eval.json", {"checkpoint": "model_final.pth", "results": {}})
    assert only(tmp_path).finished
    record = json.loads((tmp_path / "slurm" / NOBODY / "job.json").read_text())
    write_json(tmp_path / "slurm" / NOBODY / "job.json", {**record, "submitted": "2999-01-01T00:00:00+00:00"})
    assert not only(tmp_path).progress.complete  # the results of an earlier one


def test_members_of_a_sweep_and_their_later_jobs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k in (0, 1, 2, 10):
        submitted(tmp_path, f"41943050{k}", tmp_path / f"lr_{k}", overrides=[f"optimizer.lr={k}"])
    submitted(tmp_path, "4194399", tmp_path / "lr_1", time="2026-02-01T10:00:00+00:00", overrides=["optimizer.lr=1"])
    torn = submitted(tmp_path, "4194400", tmp_path / "lr_3")
    (torn / "job.json").write_text('{"job_id": "4194400", "executor": ')
    statuses = collect(tmp_path)
    assert [Path(s.output_dir).name for s in statuses] == ["lr_0", "lr_1", "lr_2", "lr_10"]
    assert statuses[1].job_id == "4194399"
    assert "4194400/job.json is not complete" in caplog.text
    assert [s.overrides for s in collect(tmp_path.parent) if s.output_dir.startswith(str(tmp_path))] == [
        (f"optimizer.lr={k}",) for k in (0, 1, 2, 10)
    ]
    assert "lr=10 " in format_table(statuses)


@pytest.mark.parametrize(
    ("log", "trouble"),
    [
        (TRACEBACK, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("fine\nerror: model.depth=-1 must be positive.\nsrun: error: n1: task 0: Exited\n", "error: model.depth=-1"),
        (
            "fine\nslurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n",
            "slurmstepd: error: ***",
        ),
        ("piip.errors.StorageError: the disk is full\n" + "x" * 2**18, "its processes ended without a result"),
        ("AssertionError\n", "AssertionError"),
        ("TypeError: " + "long " * 100, "TypeError: long"),
        (b"\xff\xfe\nKeyError: 'a'\n", "KeyError: 'a'"),
        (None, "its processes ended without a result"),
    ],
)
def test_why_it_failed(tmp_path: Path, log: str | bytes | None, trouble: str) -> None:
    folder = submitted(tmp_path, NOBODY, tmp_path)
    if log is not None:
        (folder / f"{NOBODY}_0_log.out").write_bytes(log.encode() if isinstance(log, str) else log)
    status = only(tmp_path)
    assert status.trouble.startswith(trouble)
    assert len(status.trouble) <= 200
    assert format_table([status]).endswith(f"{NOBODY}: {status.trouble}")


def test_what_an_attempt_noted_comes_first(tmp_path: Path) -> None:
    folder = submitted(tmp_path, NOBODY, tmp_path)
    (folder / f"{NOBODY}_0_log.out").write_text("ValueError: of an earlier attempt\n")
    write_json(folder / "attempt-0.json", {"outcome": "crashed", "reason": "status 1"})
    assert only(tmp_path).trouble == "ValueError: of an earlier attempt"
    write_json(folder / "attempt-1.json", {"outcome": "refused", "reason": "the dataset\nis empty."})
    assert only(tmp_path).trouble == "the dataset is empty."


def test_where_slurm_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(tmp_path, "77", tmp_path / "a", executor="slurm")
    submitted(tmp_path, "78", tmp_path / "b", executor="slurm")
    (tmp_path / "b").mkdir()
    write_summary(str(tmp_path / "b"), {"iterations": 30}, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    lost, done = collect(tmp_path)
    assert (lost.state, lost.going_on, lost.finished) == ("UNKNOWN", False, False)
    assert (done.state, done.finished) == ("UNKNOWN", True)
    assert failed([lost, done]) == []  # it may be running
    table = format_table([lost, done])
    assert "77: the state of job 77 cannot be asked for: there is no Slurm here" in table
    assert "78:" not in table


@pytest.mark.slurm
def test_a_sweep_on_slurm(cluster: SlurmCluster, tmp_path: Path) -> None:
    """One member finishes, one fails, one ends well without having finished, one runs; then the failed one again."""
    outs = [tmp_path / f"seed_{k}" for k in range(4)]
    for out in outs:
        out.mkdir()
    write_json(tmp_path / "summary.json", {"iterations": 30, "best_metric": METRIC, "best_value": 90.0})
    script = tmp_path / "script"
    script.write_text(
        f"""#!/bin/sh
        case $SLURM_ARRAY_TASK_ID in
        0) cp {tmp_path}/summary.json {outs[0]} ;;
        1) echo 'DataError: no images'; exit 4 ;;
        3) echo '{{"iteration": 5, "total_loss": 1.25, "eta_seconds": 61}}' > {outs[3]}/metrics.json; sleep 100 ;;
        esac
        """
    )
    log = f"--output={tmp_path}/slurm/%A_%a/%A_%a_0_log.out"
    number = cluster.submit("--array=0-3", "--hold", log, str(script))
    for k, out in enumerate(outs):
        arguments = config(tmp_path / f"slurm/configs/{k}.yaml")
        submitted(tmp_path, f"{number}_{k}", out, executor="slurm", arguments=arguments, overrides=[f"train.seed={k}"])
    waiting = collect(tmp_path)
    assert all(s.going_on and s.state == "PENDING" for s in waiting)
    assert "PENDING (JobHeldUser)" in format_table(waiting)

    cluster.run("scontrol", "release", number)
    for k, state in enumerate(("COMPLETED", "FAILED", "COMPLETED")):
        cluster.wait(f"{number}_{k}", state)
    cluster.wait(f"{number}_3", lambda job: (outs[3] / "metrics.json").exists())
    statuses = collect(tmp_path)
    assert [s.finished for s in statuses] == [True, False, False, False]
    assert [s.going_on for s in statuses] == [False, False, False, True]
    assert failed(statuses) == statuses[1:3]
    assert statuses[1].trouble == "DataError: no images"
    rows = [" ".join(line.split()) for line in format_table(statuses).splitlines()[2:]]
    assert rows[:4] == [
        f"{number}_0 seed=0 finished 0 30/30 - {METRIC} 90 -",
        f"{number}_1 seed=1 FAILED 0 - - - -",
        f"{number}_2 seed=2 COMPLETED, but not finished 0 - - - -",
        f"{number}_3 seed=3 RUNNING 0 6/30 1.25 - 0:01:01",
    ]

    cluster.run("scancel", f"{number}_3")
    cluster.wait(f"{number}_3", "CANCELLED")
    stopped = collect(tmp_path)[3]
    assert stopped.state == "CANCELLED"
    assert stopped.trouble.startswith(("cancelled", "slurmstepd: error: *** J"))  # Slurm writes it a moment later
    again = cluster.submit("--wrap=true", f"--output={tmp_path}/log")
    submitted(tmp_path, again, outs[1], executor="slurm", time="2026-01-03T10:00:00+00:00", overrides=["train.seed=1"])
    cluster.wait(again)
    shutil.copy(tmp_path / "summary.json", outs[1])
    statuses = collect(tmp_path)
    assert [s.job_id for s in statuses] == [f"{number}_0", again, f"{number}_2", f"{number}_3"]
    assert failed(statuses) == statuses[2:]

    unseen = cluster.submit("--begin=now+1hour", "--wrap=true")
    submitted(tmp_path, unseen, outs[2], executor="slurm", time="2026-01-04T10:00:00+00:00")
    cluster.run("scancel", unseen)
    cluster.wait(unseen, "CANCELLED")
    assert collect(tmp_path)[2].trouble == "cancelled"
