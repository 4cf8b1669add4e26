"""Models with a copy in every process, and models spread over processes, train like one process alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from piip.engine import parallel
from piip.engine.config import check_config, load_config
from piip.errors import ConfigError
from tests.engine import two_processes
from tests.engine.running import TINY, differences, fail, load, metrics, run_tool, train
from tests.engine.test_trainer import make
from tests.modeling.test_overlap import tiny

PIIP = str(Path(__file__).with_name("tiny_piip_config.py"))
SPREAD = "train.parallel=fsdp"
CHECKS = [name for name in vars(two_processes) if name.startswith("check_")]


def run(folder: Path, *overrides: str, **options: object) -> str:
    return train(folder, *overrides, config=PIIP, **options).output


def losses(folder: Path) -> torch.Tensor:
    found = [line["total_loss"] for line in metrics(folder) if "total_loss" in line]
    assert len(found) == 6
    return torch.tensor(found, dtype=torch.float64)


def assert_same_training(folder: Path, alone: Path, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(losses(folder), losses(alone), **tolerance)
    found, expected = (load(f / "model_final.pth") for f in (folder, alone))
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(found["model"][name], tensor, **tolerance)
    results = [json.loads((f / "eval.json").read_text())["results"] for f in (folder, alone)]
    assert results[0]["classification"]["top1"] == results[1]["classification"]["top1"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with whole batches."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model spread over two processes."""
    folder = tmp_path_factory.mktemp("spread")
    assert "The model is spread over 2 processes, 1 times, in 8 parts" in run(folder, SPREAD, processes=2)
    return folder


def resume(source: Path, folder: Path, name: str, *overrides: str, **options: object) -> Path:
    """A copy of a training, gone on with from one of its checkpoints."""
    shutil.copytree(source, folder)
    (folder / "last_checkpoint").write_text(name)
    for later in folder.glob("model_final*"):
        shutil.rmtree(later) if later.is_dir() else later.unlink()
    (folder / "eval.json").unlink()
    output = run(folder, *overrides, resume=True, **options)
    assert f"Resumed from {folder}/{name}" in output
    return folder


@pytest.fixture(scope="module")
def resumed(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process from its fourth iteration. (Losses in the metrics are medians since a training was started.)"""
    return resume(alone, tmp_path_factory.mktemp("resumed") / "out", "model_0000003.pth")


def test_what_two_processes_do_together() -> None:
    assert len(CHECKS) == 8
    for _ in range(2):
        result = run_tool(*CHECKS, processes=2, script=two_processes.__file__)
        # Once in some thirty runs on busy cores, gloo was seen to spin, and both processes waited for the same tensor.
        if "Timed out waiting" not in result.output:
            break
    assert result.status == 0, result.output


def test_copies_with_divided_batches_train_like_one_process(alone: Path, tmp_path: Path) -> None:
    run(tmp_path, "train.accumulate=2", processes=2)
    assert_same_training(tmp_path, alone)


def test_a_spread_model_trains_like_one_process(alone: Path, spread: Path) -> None:
    assert_same_training(spread, alone)
    assert {p.name for p in spread.glob("model_*")} == {
        "model_0000001", "model_0000003", "model_best.pth", "model_final", "model_final.pth",
    }  # fmt: skip
    assert (spread / "last_checkpoint").read_text() == "model_final"


def test_replicas_of_a_spread_model_train_like_one_process(alone: Path, tmp_path: Path) -> None:
    output = run(tmp_path, SPREAD, "train.fsdp.replicate=2", "train.accumulate=2", processes=2)
    assert "The model is spread over 1 processes, 2 times" in output
    assert_same_training(tmp_path, alone)


@pytest.mark.parametrize("processes", [1, 2])
def test_checkpoints_in_parts_are_resumed_by_any_number(
    resumed: Path, spread: Path, tmp_path: Path, processes: int
) -> None:
    folder = resume(spread, tmp_path / "out", "model_0000003", SPREAD, processes=processes)
    assert_same_training(folder, resumed)
    assert (folder / "last_checkpoint").read_text() == ("model_final" if processes > 1 else "model_final.pth")


def test_a_file_is_resumed_by_copies_and_a_spread_model(alone: Path, resumed: Path, tmp_path: Path) -> None:
    for name, *overrides in (("ddp",), ("fsdp", SPREAD)):
        folder = resume(alone, tmp_path / name, "model_0000003.pth", *overrides, processes=2)
        assert_same_training(folder, resumed)


@pytest.mark.slow
def test_a_kill_while_saving_costs_nothing(spread: Path, tmp_path: Path) -> None:
    arguments = ["--config-file", PIIP, f"train.output_dir={tmp_path}", SPREAD]
    killed = run_tool(*arguments, folder=f"{tmp_path}/.model_0000003", kill_at_event=3, processes=2)
    assert killed.status != 0
    assert list(tmp_path.glob(".model_0000003*")), "it was killed elsewhere"
    assert not (tmp_path / "model_0000003").exists()
    assert f"Resumed from {tmp_path}/model_0000001" in run(tmp_path, SPREAD, resume=True, processes=2)
    assert not list(tmp_path.glob(".model*"))
    assert differences(load(tmp_path / "model_final.pth"), load(spread / "model_final.pth")) == []


def test_half_precision_recomputation_and_report_of_a_spread_model(alone: Path, tmp_path: Path) -> None:
    # A complete checkpoint to start from is never held whole.
    start = [f"train.init_checkpoint={alone}/model_final.pth", "optimizer.lr=1e-4"]
    half = [*start, "train.amp.enabled=True", "+model.network.use_act_checkpoint=True", "train.report.enabled=True"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, *start)
    output = run(two, SPREAD, *half, processes=2)
    assert "172 loaded" in output
    assert "The report could not be written" not in output
    assert (two / "report/predictions.png").stat().st_size > 1000
    assert not torch.equal(losses(two), losses(one))
    assert_same_training(two, one, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.parallel=fdsp", ["train.parallel=fdsp must be ddp or fsdp", "'fsdp'"]),
        ("train.accumulate=0", ["train.accumulate=0 must be a whole number at least 1"]),
        ("train.accumulate=1.5", ["train.accumulate=1.5 must be a whole number"]),
        ("train.fsdp.replicate=0", ["train.fsdp.replicate=0"]),
        ("train.ddp.gradient_compression=fp16", ["must be float16 or bfloat16 or null", "'float16'"]),
        ("+train.ddp.bucket_cap=3", ["train.ddp.bucket_cap is no argument", "'bucket_cap_mb'"]),
    ],
)
def test_bad_values_are_early_errors(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(TINY, [override]))
    for part in parts:
        assert part in str(caught.value)


def test_branches_on_streams_cannot_be_spread() -> None:
    model = tiny(overlap_branches=True)
    with pytest.raises(ConfigError, match=r"overlap_branches=True .*train.parallel=fsdp"):
        parallel.spread(model, None, torch.device("cpu"))


def test_detectron2s_compression_is_understood(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        f"from detectron2.config import LazyConfig\ncfg = LazyConfig.load({TINY!r})\n"
        "model, dataloader, optimizer, lr_multiplier = cfg.model, cfg.dataloader, cfg.optimizer, cfg.lr_multiplier\n"
        "train = dict(max_iter=3, ddp=dict(fp16_compression=True))\n"
    )
    cfg = load_config(str(config))
    check_config(cfg)
    assert cfg.train.ddp.gradient_compression == "float16"
    assert "fp16_compression" not in cfg.train.ddp


def test_a_batch_that_cannot_be_divided(tmp_path: Path) -> None:
    message = fail("--config-file", TINY, f"train.output_dir={tmp_path}", "train.accumulate=3")
    assert "train.accumulate=3 cannot divide the 8 images of each process equally" in message
    trainer = make(accumulate=2)
    trainer.data_loader = ({"x": 1} for _ in range(3))
    with pytest.raises(ConfigError, match=r"needs batches that are lists .* gave a dict"):
        trainer.train(0, 1)
