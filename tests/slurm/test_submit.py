"""``tools/submit.py``: what it refuses, and trainings that it sends to Slurm, to this machine and to itself."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from piip.errors import DependencyError, UserError
from piip.slurm import cli
from piip.slurm.state import local_state
from tests.engine.running import ROOT, TINY, differences, load, metrics, run_tool, train
from tests.slurm.cluster import SlurmCluster
from tests.slurm.processes import parent_of, processes
from tests.slurm.training import TWO_NODES, assert_undisturbed, submit

SUBMIT = str(ROOT / "tools/submit.py")
DIGITS = "quickstart/mask_rcnn_piip_digits.py"


def tiny(output: Path, *overrides: str) -> list[str]:
    """The tiny training, as it stands after the options."""
    return ["--", "--config-file", TINY, f"train.output_dir={output}", *overrides]


def table(folder: Path, capsys: pytest.CaptureFixture) -> list[list[str]]:
    """The cells of what ``status`` prints, a list for each training."""
    capsys.readouterr()
    assert cli.main(["status", str(folder)]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()[2:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


# What is refused before anything is queued.


def refused(arguments: Sequence[str], *words: str) -> None:
    """The arguments are refused with one line that has these words."""
    with pytest.raises(UserError) as error:
        cli.main(arguments)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--partition", "nowhere"], ["invalid partition specified: nowhere", "`sinfo -s` lists with --partition"]),
        (["--nodes", "4"], ["Node count specification invalid", "lower --nodes 4"]),
        (["--time", "2:00:00"], ["Requested time limit is invalid", "lower --time, of 120 minutes"]),
        (["--mem", "99999"], ["Memory specification can not be satisfied", "lower --mem 99999G"]),
        (["--cpus-per-task", "99"], ["More processors requested than permitted", "lower --cpus-per-task"]),
        (["--constraint", "fast"], ["Invalid feature specification", "choose a --constraint"]),
        (["--exclude", "nobody"], ["Invalid node name specified", "check the names after --exclude"]),
        (["--reservation", "mine"], ["reservation is invalid", "`scontrol show reservations` lists"]),
        (["--slurm-extra", "nise=3"], ["unrecognized option", "--nise=3", "check --slurm-extra"]),
    ],
)
def test_what_slurm_refuses(cluster: SlurmCluster, tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused([*options, *tiny(tmp_path)], "sbatch refused the job", *words)
    assert cluster.run("squeue", "-h") == ""
    assert not list(tmp_path.glob("slurm/*/job.json"))


@pytest.mark.slurm
def test_more_gpus_than_a_node_has(cluster: SlurmCluster, tmp_path: Path) -> None:
    arguments = ["--gpus-per-node", "4", *tiny(tmp_path, "train.device=cuda")]
    refused(arguments, "Requested node configuration is not available", "no node has 4 GPUs", "sinfo")
    assert cluster.run("squeue", "-h") == ""


@pytest.mark.slurm
def test_a_folder_with_a_waiting_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, options=("--slurm-extra", "hold"))
    refused(
        tiny(tmp_path),
        f"job {job.number} is still training in '{tmp_path}' (PENDING)",
        "submit.py cancel",
        "choose another",
    )
    assert cli.main(["cancel", str(tmp_path)]) == 0
    cluster.wait(job.number, "CANCELLED")
    assert cli.main(["--dry-run", *tiny(tmp_path)]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder, "train.max_iter=2")
    return folder


@pytest.fixture
def no_slurm(jobs_find_the_tests: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is to be sent fails for want of sbatch."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_slurm")
class TestRefused:
    """Before anybody asks for sbatch."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], ["nothing to train", "-- --config-file NAME"]),
            (["--"], ["nothing to train"]),
            (["--", "train.seed=1"], ["no config", "--config-file NAME"]),
            (["--", "--config-file", "quickstart/mask_rcn"], ["'quickstart/mask_rcn' exists neither", "Did you mean"]),
            (["--", "--config-file", TINY, "train.sead=1"], ["train.sead", "Did you mean", "seed"]),
            (["--", "--config-file", TINY, "--num-gpus", "8"], ["--num-gpus is for", "--nodes and --gpus-per-node"]),
            (["--nodes", "3", "--", "--config-file", TINY], ["total_batch_size=8", "3 processes", "multiple of 3"]),
            (["--", "--config-file", DIGITS], ["asks for no GPU", "train.device=cuda", "--gpus-per-node N"]),
            (["--gpus-per-node", "2", "--", "--config-file", TINY], ["asks for 2 GPUs", "train.device=cpu", "leave"]),
            (["--time", "3", "--", "--config-file", TINY], ["--time of 3 minutes is too short", "at least 4 minutes"]),
            (["--slurm-extra=--nice=3", "--", "--config-file", TINY], ["'--nice=3' must be key=value"]),
            (["--profile", "none.yaml", "--", "--config-file", TINY], ["profile 'none.yaml' does not exist"]),
            (["--sweep", "train.sead=1,2", "--", "--config-file", TINY], ["train.sead", "seed"]),
            (["--gpus-per-node", "2", "--tasks-per-node", "1", "--", "--config-file", TINY], ["does not match"]),
            (["--executor", "local", "--nodes", "2", "--", "--config-file", TINY], ["--nodes 2 needs Slurm", "local"]),
            (["status", "nowhere"], ["'nowhere' holds no jobs", "job.json"]),
            (["resubmit", "nowhere"], ["'nowhere' holds no jobs"]),
        ],
    )
    def test_arguments(self, tmp_path: Path, options: list[str], words: list[str]) -> None:
        output = [f"train.output_dir={tmp_path}/out"] if "--config-file" in options else []
        refused([*options, *output], *words)
        assert not list(tmp_path.glob("out/slurm/*/job.json"))

    def test_unknown_options(self, capsys: pytest.CaptureFixture) -> None:
        for arguments in (
            ["--partitoin", "x"],
            ["--time", "soon"],
            ["--nodes", "two"],
            ["status"],
            ["status", "a", "b"],
        ):
            with pytest.raises(SystemExit, match="2"):
                cli.main(arguments)
            assert "submit.py" in capsys.readouterr().err

    def test_a_profile_with_an_unknown_key(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text("acount: me\n")
        refused(["--profile", str(tmp_path / "p.yaml"), *tiny(tmp_path)], "unknown key 'acount'", "'account'")

    @pytest.mark.parametrize(
        ("text", "words"),
        [("import nowhere", ["cannot be read", "nowhere"]), ("model =", ["cannot be read", "line 1"])],
    )
    def test_a_config_that_fails_to_load(self, tmp_path: Path, text: str, words: list[str]) -> None:
        (tmp_path / "broken.py").write_text(text)
        refused(["--", "--config-file", str(tmp_path / "broken.py")], str(tmp_path / "broken.py"), *words)

    def test_a_folder_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        refused(tiny(tmp_path / "file/out"), f"'{tmp_path}/file/out' cannot be written to", "choose another folder")
        refused(tiny(Path("/proc/out")), "'/proc/out' cannot be written to", "choose another folder")

    def test_a_folder_with_a_training(self, trained: Path) -> None:
        refused(tiny(trained), f"'{trained}' holds a training", "--resume after --", "--overwrite before --")

    def test_a_folder_with_the_training_of_another_model(self, trained: Path) -> None:
        refused(
            ["--", "--resume", *tiny(trained, "model.width=8")[1:]],
            f"'{trained}' holds the training of another model (model.width was 16, is 8)",
            f"{trained}/config.yaml",
        )

    def test_without_slurm(self, tmp_path: Path) -> None:
        with pytest.raises(DependencyError, match=r"sbatch and srun are not on the path. .* --executor local"):
            cli.main(tiny(tmp_path / "out"))

    def test_a_dry_run_changes_nothing(self, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
        before = sorted(trained.rglob("*"))
        cli.main(["--dry-run", "--overwrite", *tiny(trained)])
        assert sorted(trained.rglob("*")) == before
        cli.main(["--dry-run", *tiny(tmp_path / "new/out")])
        assert not (tmp_path / "new").exists()


# What is sent.


def dry_run(capsys: pytest.CaptureFixture, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert cli.main(["--dry-run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--nodes", "2", "--gpus-per-node", "8", "--gpu-type", "h100", "--time", "2-0", "--partition", "big"]
    options += [
        "--cpus-per-task",
        "7",
        "--mem",
        "500",
        "--account",
        "me",
        "--comment",
        "a b",
        "--setup",
        "module load x",
    ]
    options += ["--srun-arg=--label", "--slurm-extra", "nice=5", "--signal-delay", "90", "--python", "run python"]
    lines = dry_run(
        capsys, *options, *tiny(tmp_path / "o", "dataloader.train.total_batch_size=16", "train.device=cuda")
    )
    for expected in (
        "--nodes=2", "--ntasks-per-node=8", "--gres=gpu:h100:8", "--time=2880", "--partition=big", "--cpus-per-task=7",
        "--mem=500G", "--account=me", "--comment='a b'", "--nice=5", "--signal=USR2@90", "--requeue",
        "--job-name=tiny_config", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {expected}" in lines
    (srun,) = (line for line in lines if line.startswith("srun "))
    assert "--kill-on-bad-exit=1" in srun
    assert "--label" in srun
    assert "run python -u -m submitit.core._submit" in srun
    at = lines.index(srun)
    assert lines.index("module load x") < at
    assert any(line.startswith("export PYTHONPATH=") for line in lines[:at])
    assert "status=$?" in lines[at:]
    assert any(line.startswith(f"run python -m piip.slurm.job {tmp_path}/o/slurm 3 ") for line in lines[at:])
    assert lines[-1] == f"# tiny_config: {tmp_path}/o"
    assert not any("gpus-per-node" in line or "--array" in line for line in lines)


def test_the_script_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep = ["--sweep", "optimizer.lr=0.1,0.2", "train.seed=0:3", "--array-parallelism", "2", "--no-requeue"]
    lines = dry_run(capsys, *sweep, *tiny(tmp_path))
    assert "#SBATCH --array=0-5%2" in lines
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --requeue" not in lines
    assert "status=$?" not in lines
    assert lines[-6] == f"# tiny_config: {tmp_path}/lr_0.1-seed_0"
    assert lines[-1] == f"# tiny_config: {tmp_path}/lr_0.2-seed_2"


def losses(output: Path) -> list[tuple[int, float]]:
    return [(line["iteration"], line["total_loss"]) for line in metrics(output) if "total_loss" in line]


@pytest.mark.slurm
def test_two_nodes_learn_as_one_process_does(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Nothing is random here. What remains is the order of sums: means of the halves of a batch are averaged."""
    overrides = ["train.max_iter=20", "model.noise=0", "dataloader.train.mapper.amount=0"]
    job = submit(cluster, tmp_path / "two", *overrides)
    train(tmp_path / "one", *overrides, "train.log_period=1")
    job.finish()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [i for i, _ in two] == [i for i, _ in one] == list(range(20))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-5)
    assert two[-1][1] < 0.9 * two[0][1]
    note = json.loads((job.folder / "job.json").read_text())
    assert (note["output_dir"], note["resources"]["nodes"], note["job_id"]) == (str(job.output), 2, job.number)
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", note["revision"])
    assert Path(note["code"], "piip/slurm/job.py").is_file()
    frozen = next(value for value in note["arguments"] if value.endswith(".yaml"))
    assert "noise: 0" in Path(frozen).read_text()


@pytest.mark.slurm
@pytest.mark.slow
def test_two_nodes_learn_the_quickstart_as_one_process_does(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Which anchors and proposals are learnt from is drawn by every process for itself, so here all of them are.

    Even so only the losses of the proposal generator are sums over pictures of equal weight. Those of the heads are
    means over a process's own proposals and objects, of which one process may have more than the other.
    """
    overrides = [
        "train.max_iter=5",
        "train.log_period=1",
        "train.device=cpu",
        "train.report.enabled=False",
        "model.proposal_generator.batch_size_per_image=100000",
        "model.roi_heads.batch_size_per_image=10000",
    ]
    arguments = ["--", "--config-file", DIGITS, f"train.output_dir={tmp_path}/two", *overrides]
    assert cli.main([*TWO_NODES, *arguments]) == 0
    (note,) = tmp_path.glob("two/slurm/*/job.json")
    cluster.wait(note.parent.name, timeout=400)
    train(tmp_path / "one", *overrides, config=DIGITS)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [i for i, _ in two] == [i for i, _ in one] == list(range(5))
    assert two[0][1] == pytest.approx(one[0][1], rel=1e-5)
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=2e-3)
    assert two[-1][1] < 0.9 * two[0][1]


@pytest.mark.slurm
@pytest.mark.slow
def test_a_sweep_with_a_failure(cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One of the trainings breaks in its process's thirteenth step; from its last checkpoint there are only ten."""
    overrides = ["train.max_iter=20", "train.checkpointer.period=5"]
    sweep = ["--time", "20", "--sweep", "model.break_at=12,100,101,102"]
    assert cli.main([*sweep, *tiny(tmp_path, *overrides)]) == 0
    number = re.search(r"job (\d+)_0: tiny_config -> .*/break_at_12", capsys.readouterr().out)[1]
    for member in (1, 2, 3):
        cluster.wait(f"{number}_{member}", timeout=120)
    cluster.wait(f"{number}_0", "FAILED", timeout=120)
    rows = table(tmp_path, capsys)
    assert [row[1] for row in rows] == [f"break_at={n}" for n in (12, 100, 101, 102)]
    assert [row[2] for row in rows] == ["FAILED", "finished", "finished", "finished"]
    assert [row[3] for row in rows] == ["0"] * 4, "a mistake is not tried again"
    assert rows[1][4] == "20/20"
    cli.main(["status", str(tmp_path)])
    assert f"{number}_0: The loss is not finite at iteration 12" in capsys.readouterr().out

    assert cli.main(["resubmit", str(tmp_path)]) == 0
    (again,) = re.findall(r"job (\d+\w*): ", capsys.readouterr().out)
    assert again != f"{number}_0"
    cluster.wait(again, timeout=120)
    assert [row[2] for row in table(tmp_path, capsys)] == ["finished"] * 4
    assert cli.main(["resubmit", str(tmp_path)]) == 0
    assert "no training has failed" in capsys.readouterr().out
    train(tmp_path / "whole", *overrides)
    final = load(tmp_path / "whole/model_final.pth")
    for n in (12, 102):
        assert differences(load(tmp_path / f"break_at_{n}/model_final.pth"), final) == []


@pytest.mark.slurm
def test_gpus_that_cannot_be_used(cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The cluster's GPUs are no real ones."""
    job = submit(cluster, tmp_path, "train.device=cuda", options=("--gpus-per-node", "1"))
    cluster.wait(job.number, "FAILED", timeout=90)
    assert job.restarts() == 0
    assert "the job was to get 1 GPU(s) on each machine" in job.log()
    assert "submit without --gpus-per-node" in job.log()
    assert table(tmp_path, capsys)[0][2] == "FAILED"


def test_on_this_machine(jobs_find_the_tests: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two processes that are warned as Slurm would do it save, start again, and end with the undisturbed bits."""
    steps = "train.max_iter=30"
    options = ["--executor", "local", "--tasks-per-node", "2"]
    assert cli.main([*options, *tiny(tmp_path, steps, "train.log_period=1", "model.pause=0.3")]) == 0
    (note,) = tmp_path.glob("slurm/*/job.json")
    number = note.parent.name
    deadline = time.monotonic() + 180

    def wait_for(condition: object) -> None:
        while not condition():
            assert time.monotonic() < deadline, (note.parent / f"{number}_0_log.out").read_text()
            time.sleep(0.1)

    wait_for((tmp_path / "last_checkpoint").exists)
    assert table(tmp_path, capsys)[0][2] == "RUNNING"
    for task in [process for process in processes() if parent_of(process) == int(number)]:
        os.kill(task, signal.SIGUSR2)
    wait_for(lambda: local_state(number, note.parent).over)
    log = (note.parent / f"{number}_0_log.out").read_text()
    stopped = re.search(r"Stopped by SIGUSR2 after iteration (\d+)", log)
    assert f"model_{int(stopped[1]) - 1:07d}.pth" in log.partition("Resumed from")[2]
    assert table(tmp_path, capsys)[0][2] == "finished"
    assert_undisturbed(tmp_path, steps)


@pytest.mark.slow
def test_cancelled_on_this_machine(jobs_find_the_tests: None, tmp_path: Path) -> None:
    assert cli.main(["--executor", "local", *tiny(tmp_path, "train.max_iter=1000", "model.pause=0.3")]) == 0
    (note,) = tmp_path.glob("slurm/*/job.json")
    number = note.parent.name
    deadline = time.monotonic() + 180
    while not (tmp_path / "last_checkpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tasks = [process for process in processes() if parent_of(process) == int(number)]
    assert cli.main(["cancel", str(tmp_path)]) == 0
    while any(Path(f"/proc/{task}").exists() for task in tasks) or not local_state(number, note.parent).over:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "Stopped by SIGTERM" in (note.parent / f"{number}_0_log.out").read_text()


def test_the_tool_in_this_process(jobs_find_the_tests: None, tmp_path: Path) -> None:
    arguments = ["--executor", "debug", *tiny(tmp_path, "train.max_iter=6")]
    done = run_tool(*arguments, script=SUBMIT)
    assert done.status == 0, done.output
    assert load(tmp_path / "model_final.pth")["iteration"] == 5
