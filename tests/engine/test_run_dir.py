"""What a training writes into its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyConfig
from omegaconf import DictConfig

from piip.engine.run_dir import remembered_seed, save_config, set_earlier_run_aside, write_json
from piip.engine.writers import build_writers
from tests.engine.running import TINY, metrics, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, "train.max_iter=20").output


def test_progress_tells_what_one_wants_to_know(trained: tuple[Path, str]) -> None:
    lines = [line for line in trained[1].splitlines() if "iter 15/20" in line]
    assert len(lines) == 1
    for part in ("eta 0:00:0", "total_loss", "loss_class", "grad_norm", "lr ", "img/s", "s/it (data", "mem ", " MB"):
        assert part in lines[0]


def test_metrics_are_json_and_tensorboard(trained: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = metrics(trained[0])
    assert {"total_loss", "loss_class", "lr", "img_per_s", "memory_mb", "eta_seconds", "grad_norm"} <= lines[-2].keys()
    assert [line["points/accuracy"] for line in lines if "points/accuracy" in line]
    events = EventAccumulator(str(trained[0])).Reload()
    assert [event.step for event in events.Scalars("total_loss")] == [4, 9, 14, 19]
    assert "points/accuracy" in events.Tags()["scalars"]


def test_config_is_kept_with_its_source(trained: tuple[Path, str]) -> None:
    saved = LazyConfig.load(str(trained[0] / "config.yaml"))
    assert saved.train.max_iter == 20
    assert remembered_seed(str(trained[0])) == saved.train.seed == 3
    assert (trained[0] / "config_source.py").read_text() == Path(TINY).read_text()


def test_config_that_yaml_cannot_hold(tmp_path: Path) -> None:
    def local() -> None: ...

    cfg = DictConfig({"train": {"seed": 1}, "function": local}, flags={"allow_objects": True})
    save_config(cfg, "config.yaml", str(tmp_path))
    assert (tmp_path / "config.yaml.pkl").exists()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "config.yaml").write_text("train: [")
    assert remembered_seed(str(tmp_path)) is None


def test_resumed_metrics_have_no_double_and_no_torn_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}) for i in (4, 9, 14)]
    (tmp_path / "metrics.json").write_text("\n".join([*lines, '{"iteration": 19, "tot']))
    for writer in build_writers(str(tmp_path), max_iter=20, start_iter=10):
        if hasattr(writer, "close"):
            writer.close()
    assert (tmp_path / "metrics.json").read_text().splitlines() == lines[:2]


def test_json_is_valid_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [np.float32(1.5), np.int64(2)], "c": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, 2], "c": None}


def test_only_trainings_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert set_earlier_run_aside(str(tmp_path)) is None
    for number in (1, 2):
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        (tmp_path / "model_final.pth").write_text(str(number))
        assert set_earlier_run_aside(str(tmp_path)) == tmp_path / "previous" / str(number)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "previous"}
    assert (tmp_path / "previous/2/model_final.pth").read_text() == "2"
