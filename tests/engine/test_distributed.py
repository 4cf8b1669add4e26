"""Several processes on the CPU, started by torchrun as users start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.running import TINY, TOOL, environment, fail, load, metrics, run_tool, train

# Without noise, and with the loss a mean over images, two halves of a batch are as good as one.
EXACT = ["model.noise=0", "train.max_iter=12", "train.log_period=1", "train.eval_period=6", "train.ema.enabled=False"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder, *EXACT)
    return folder


def assert_same_losses(folder: Path, alone: Path) -> None:
    losses = [[line["total_loss"] for line in metrics(f) if "total_loss" in line] for f in (folder, alone)]
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def assert_same_end(folder: Path, alone: Path) -> None:
    results = [[line["points/accuracy"] for line in metrics(f) if "points/accuracy" in line] for f in (folder, alone)]
    assert results[0][-1] == results[1][-1]
    ends = [load(f / "model_final.pth")["model"]["head.weight"] for f in (folder, alone)]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


def test_two_processes_are_as_good_as_one(alone: Path, tmp_path: Path) -> None:
    run = train(tmp_path, *EXACT, processes=2)
    assert "2 process(es) on CPU" in run.output
    assert (tmp_path / "log.txt.rank1").exists()
    assert_same_losses(tmp_path, alone)
    assert_same_end(tmp_path, alone)
    # Once more from the middle, and each number of processes goes on with the checkpoint of the other.
    for processes in (2, 1):
        (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
        run = train(tmp_path, *EXACT, resume=True, processes=processes)
        assert "Resumed from" in run.output
        assert_same_end(tmp_path, alone)


def test_torchrun(alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TOOL]
    command += ["--config-file", TINY, f"train.output_dir={tmp_path}", *EXACT]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert_same_losses(tmp_path, alone)
    assert_same_end(tmp_path, alone)


def test_all_processes_stop_at_a_bad_loss(tmp_path: Path) -> None:
    arguments = ["--config-file", TINY, f"train.output_dir={tmp_path}", "model.break_at=2"]
    run = run_tool(*arguments, processes=2)
    assert run.status == 2
    assert run.output.count("error: The loss is not finite at iteration 2 (loss_class=nan)") == 2


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    wanted = torch.cuda.device_count() + 2
    arguments = ["--config-file", TINY, "--num-gpus", str(wanted), f"train.output_dir={tmp_path / 'out'}"]
    message = fail(*arguments, "train.device=cuda")
    assert f"--num-gpus {wanted} but this machine has" in message
    assert f"torchrun --nproc-per-node {wanted}" in message
    assert not (tmp_path / "out").exists()


def test_falls_back_to_the_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU; CUDA_VISIBLE_DEVICES= runs it")
    run = train(tmp_path, "train.device=cuda", "train.max_iter=2")
    assert run.output.count("running on the CPU") == 1


def test_batch_must_be_shared_equally(tmp_path: Path) -> None:
    arguments = ["--config-file", TINY, f"train.output_dir={tmp_path}", "dataloader.train.total_batch_size=7"]
    run = run_tool(*arguments, processes=2)
    assert run.status == 2
    assert "error: dataloader.train.total_batch_size=7 cannot be shared equally by 2 processes" in run.output


def test_device_must_exist(tmp_path: Path) -> None:
    assert "train.device='cuuda'" in fail("--config-file", TINY, f"train.output_dir={tmp_path}", "train.device=cuuda")
    assert run_tool("--config-file", TINY, f"train.output_dir={tmp_path}", "train.max_iter=1").status == 0
