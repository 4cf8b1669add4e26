"""Evaluation on its own and within a training, of one or several datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.config import instantiate

from piip.engine.config import load_config
from piip.engine.evaluate import build_tests, do_test, metrics_table
from piip.errors import ConfigError
from tests.engine.running import TINY, fail, load, metrics, run_tool, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder


def test_best_weights_are_those_of_the_best_evaluation(trained: Path) -> None:
    values = {line["iteration"]: line["points/accuracy"] for line in metrics(trained) if "points/accuracy" in line}
    best = load(trained / "model_best.pth")
    assert best["value"] == max(values.values())
    assert best["metric"] == "points/accuracy"
    assert best["iteration"] in (10, 20, 30)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["best_value"] == best["value"]
    assert summary["results"]["points"]["accuracy"] == values[30]
    assert summary["iterations"] == 30
    assert summary["images_per_second"] > 0
    assert summary["memory_mb"] > 10
    assert set(summary["files"]) >= {"model_final.pth", "model_best.pth", "config.yaml", "metrics.json", "log.txt"}


def test_eval_only_takes_the_best_of_the_output_folder(trained: Path) -> None:
    config = (trained / "config.yaml").read_text()
    run = run_tool("--config-file", TINY, "--eval-only", f"train.output_dir={trained}", "train.seed=99")
    assert run.status == 0, run.output
    assert f"Evaluating {trained}/model_best.pth" in run.output
    found = json.loads((trained / "eval.json").read_text())
    assert found["checkpoint"] == str(trained / "model_best.pth")
    assert found["results"]["points"]["accuracy"] == load(trained / "model_best.pth")["value"]
    assert (trained / "config.yaml").read_text() == config, "the record of the training stays"


def test_eval_only_of_a_file(trained: Path, tmp_path: Path) -> None:
    file = trained / "model_final.pth"
    run = run_tool(
        "--config-file", TINY, "--eval-only", f"train.output_dir={tmp_path}", f"train.init_checkpoint={file}"
    )
    assert run.status == 0, run.output
    found = json.loads((tmp_path / "eval.json").read_text())
    final = [line["points/accuracy"] for line in metrics(trained) if "points/accuracy" in line][-1]
    assert found["results"]["points"]["accuracy"] == final, "`model` is the average that was evaluated"


def test_eval_only_without_anything(tmp_path: Path) -> None:
    message = fail("--config-file", TINY, "--eval-only", f"train.output_dir={tmp_path}")
    assert "nothing to evaluate" in message
    assert "train.init_checkpoint" in message


def test_missing_and_unusable_files(trained: Path, tmp_path: Path) -> None:
    command = ["--config-file", TINY, "--eval-only", f"train.output_dir={tmp_path}"]
    for name in ("absent.pth", "absent.pkl"):
        assert name in fail(*command, f"train.init_checkpoint={tmp_path / name}")
    torn = tmp_path / "torn.pth"
    torn.write_bytes((trained / "model_final.pth").read_bytes()[:-500])
    assert "truncated" in fail(*command, f"train.init_checkpoint={torn}")


def test_training_starts_from_weights(trained: Path, tmp_path: Path) -> None:
    train(tmp_path, f"train.init_checkpoint={trained / 'model_final.pth'}", "train.max_iter=1", "optimizer.lr=0")
    start, end = load(trained / "model_final.pth"), load(tmp_path / "model_final.pth")
    assert (start["model"]["head.weight"] == end["model"]["head.weight"]).all()


def test_unknown_best_metric_is_told_with_the_nearest(tmp_path: Path) -> None:
    output = train(tmp_path, "train.best_checkpointer.metric=points/acuracy", "train.max_iter=2").output
    assert "Did you mean 'points/accuracy'" in output
    assert not (tmp_path / "model_best.pth").exists()


def several(count: int = 2) -> dict:
    cfg = load_config(TINY)
    test = cfg.dataloader.test
    cfg.dataloader.test = [{**test, "dataset": {**test.dataset, "count": 12 * (i + 1)}} for i in range(2)]
    cfg.dataloader.evaluator = [cfg.dataloader.evaluator] * count
    return cfg


def test_several_tests() -> None:
    cfg = several()
    results = do_test(cfg, instantiate(cfg.model))
    assert list(results) == ["test0", "test1"]
    assert 0 <= results["test1"]["points"]["accuracy"] <= 100
    table = metrics_table(results)
    assert table.count("points") == 2
    assert "error-first" not in table, "values of single categories are left out"


def test_several_tests_need_as_many_evaluators() -> None:
    with pytest.raises(ConfigError, match="lists 2 loaders"):
        build_tests(several(count=3))


def test_training_without_a_test(tmp_path: Path) -> None:
    output = train(tmp_path, "dataloader.test=null", "dataloader.evaluator=null", "train.max_iter=6").output
    assert "Training finished" in output
    assert (tmp_path / "model_final.pth").exists()
    assert "nothing can be evaluated" in fail(
        "--config-file", TINY, "--eval-only", f"train.output_dir={tmp_path}", "dataloader.test=null"
    )
