"""What a job asks for: times, limits, and the user's file with defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from piip.errors import ConfigError
from piip.slurm.resources import PROFILE_VARIABLE, Resources, minutes, read_profile


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), (90, 90), ("1:30", 2), ("0:59", 1), ("01:30:00", 90), ("48:00:00", 2880), ("00:00:01", 1),
        ("2-0", 2880), ("1-12:30", 2190), ("1-00:00:01", 1441),
    ],
)  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(text: str | int, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-5", "1.5", "1:2:3:4", "1-", "1h", " 5"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--time '{text}' is not a time; write minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 0}, "--nodes 0 must be at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1 must be at least 0"),
        ({"tasks_per_node": 0}, "--tasks-per-node 0 must be at least 1"),
        ({"gpus_per_node": 2, "tasks_per_node": 4}, "--tasks-per-node 4 does not match --gpus-per-node 2: every"),
        ({"gpu_type": "h100"}, "--gpu-type h100 needs --gpus-per-node"),
        ({"time": 3}, "--time of 3 minutes is too short to save one checkpoint: .* at least 4 minutes, or lower"),
        ({"time": 9, "signal_delay": 600}, "at least 12 minutes"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Resources(**given)


def test_one_process_for_each_gpu() -> None:
    assert Resources(gpus_per_node=8).processes_per_node == 8
    assert Resources(tasks_per_node=3).processes_per_node == 3
    assert Resources().processes_per_node == 1


def test_parameters_of_sbatch() -> None:
    asked = Resources(nodes=2, gpus_per_node=8, gpu_type="h100", mem="0", requeue=False, slurm_extra={"nice": "5"})
    parameters = asked.sbatch("name", {"A": "x y"}, [])
    assert parameters["gres"] == "gpu:h100:8"
    assert "gpus_per_node" not in parameters
    assert parameters["ntasks_per_node"] == 8
    assert parameters["mem"] == "0"
    assert parameters["setup"] == ["export A='x y'"]
    assert parameters["additional_parameters"] == {"no-requeue": True, "nice": "5"}
    assert not {"partition", "account", "cpus_per_task", "exclusive"} & parameters.keys(), "the cluster's own defaults"


def profile(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "partition: gpu\ngpus-per-node: 8\ntime: 24:00:00\nmem: 500G\nexclusive: true\n"
    text += "setup:\n - module load cuda\nsrun_arg: --label\nslurm_extra:\n  nice: 100\n"
    path = profile(tmp_path, text)
    values = read_profile(path)
    assert values == {
        "partition": "gpu", "gpus_per_node": 8, "time": 1440, "mem": "500G", "exclusive": True,
        "setup": ("module load cuda",), "srun_arg": ("--label",), "slurm_extra": {"nice": 100},
    }  # fmt: skip
    assert Resources(**values).processes_per_node == 8
    monkeypatch.setenv(PROFILE_VARIABLE, path)
    assert read_profile() == values
    assert read_profile(profile(tmp_path, "")) == {}


def test_without_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROFILE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_profile() == {}
    (tmp_path / ".config/piip").mkdir(parents=True)
    (tmp_path / ".config/piip/slurm.yaml").write_text("time: 90\n")
    assert read_profile() == {"time": 90}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", r"cluster.yaml' has the unknown key 'partitoin'. Did you mean 'partition'"),
        ("nodes: two", "cluster.yaml': nodes='two' must be a whole number"),
        ("nodes: true", "cluster.yaml': nodes=True must be a whole number"),
        ("tasks_per_node: 1.5", "tasks_per_node=1.5 must be a whole number"),
        ("requeue: 1", "requeue=1 must be true or false"),
        ("slurm_extra: nice", "slurm_extra='nice' must be keys and values"),
        ("time: tomorrow", "--time 'tomorrow' is not a time"),
        ("- partition", "must hold lines like 'partition: NAME'"),
        ("a: [", "cluster.yaml' is not YAML"),
    ],
)
def test_what_a_profile_cannot_hold(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_profile(profile(tmp_path, text))


def test_a_named_profile_must_exist() -> None:
    with pytest.raises(ConfigError, match=rf"'nowhere.yaml' does not exist; check --profile or {PROFILE_VARIABLE}"):
        read_profile("nowhere.yaml")
