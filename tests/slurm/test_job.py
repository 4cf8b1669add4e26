"""What a job's script decides when its processes have ended. That Slurm then does so is shown by ``test_faults.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from piip.slurm.job import after_attempt, attempts


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Job 7 of a machine without Slurm: asking it for anything fails."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")


def note(folder: Path, attempt: int, job: str = "7", **content: object) -> Path:
    path = folder / job / f"attempt-{attempt}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"output_dir": str(folder / "out"), "started": 1e9, **content}))
    return path


@pytest.mark.parametrize("outcome", ["finished", "refused", "requeued"])
def test_what_has_ended_is_left_alone(tmp_path: Path, outcome: str) -> None:
    path = note(tmp_path, 2, outcome=outcome)
    before = path.read_text()
    assert after_attempt(str(tmp_path), 3, 2) == 2
    assert path.read_text() == before


def test_success_needs_no_note(tmp_path: Path) -> None:
    assert after_attempt(str(tmp_path), 3, 0) == 0


def test_a_crash_asks_slurm(tmp_path: Path) -> None:
    note(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match="scontrol"):
        after_attempt(str(tmp_path), 3, 137)
    (noted,) = attempts(tmp_path / "7")
    assert (noted["outcome"], noted["reason"], noted["progress"]) == ("crashed", "status 137", False)


def test_crashes_in_vain_end_the_job(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for attempt in range(2):
        note(tmp_path, attempt, outcome="crashed", progress=False)
    note(tmp_path, 2)
    assert after_attempt(str(tmp_path), 2, 1) == 1
    told = capsys.readouterr().out
    assert told == "Not requeued: 3 attempts in a row ended without a new checkpoint, the last with status 1.\n"


@pytest.mark.parametrize("between", [{"outcome": "crashed", "progress": True}, {"outcome": "requeued"}])
def test_only_crashes_in_a_row_count(tmp_path: Path, between: dict) -> None:
    note(tmp_path, 0, outcome="crashed", progress=False)
    note(tmp_path, 1, **between)
    note(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match="scontrol"):
        after_attempt(str(tmp_path), 1, 1)


def test_a_new_checkpoint_is_progress(tmp_path: Path) -> None:
    note(tmp_path, 2)
    saved = tmp_path / "out/last_checkpoint"
    saved.parent.mkdir()
    saved.write_text("model_0000001.pth")
    with pytest.raises(FileNotFoundError, match="scontrol"):
        after_attempt(str(tmp_path), 0, 1)
    assert attempts(tmp_path / "7")[-1]["progress"] is True
    os.utime(saved, (1e9 - 1, 1e9 - 1))  # before this attempt
    note(tmp_path, 2)
    assert after_attempt(str(tmp_path), 0, 1) == 1
    assert attempts(tmp_path / "7")[-1]["progress"] is False


def test_members_of_an_array_have_their_own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    note(tmp_path, 2, job="6_3", outcome="refused", reason="why")
    assert after_attempt(str(tmp_path), 3, 2) == 2
    assert attempts(tmp_path / "6_3") == [
        {"output_dir": f"{tmp_path}/out", "started": 1e9, "outcome": "refused", "reason": "why"}
    ]


def test_attempts_are_in_their_order(tmp_path: Path) -> None:
    for attempt in (10, 9, 1):
        note(tmp_path, attempt, number=attempt)
    (tmp_path / "7/attempt-2.json").write_text("{")  # torn
    assert [a.get("number") for a in attempts(tmp_path / "7")] == [1, None, 9, 10]
