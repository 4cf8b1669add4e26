"""A training that is killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.running import TINY, TOOL, damage, differences, environment, fail, load, metrics, run_tool, train


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps with everything that has a state: dropout, running statistics, momentum, schedule, moving average."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, "train.max_iter=40")
    return folder


def assert_same(folder: Path, reference: Path) -> None:
    for name in ("model_final.pth", "model_best.pth"):
        assert differences(load(folder / name), load(reference / name)) == []
    assert json.loads((folder / "eval.json").read_text()) == json.loads((reference / "eval.json").read_text())
    assert not list(folder.glob(".*")), "temporary files are left"


def test_same_command_gives_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=40")
    assert_same(tmp_path, undisturbed)


def test_kills_anywhere_cost_nothing(undisturbed: Path, tmp_path: Path) -> None:
    # Events are file operations, so kills fall between any two steps of writing checkpoints, metrics and results;
    # those by time fall anywhere else.
    draw = random.Random(1)
    kills = 0
    while kills < 60:
        limit = {"kill_after": draw.uniform(0.1, 0.8)} if kills % 4 == 3 else {"kill_at_event": draw.randrange(3, 50)}
        if train(tmp_path, "train.max_iter=40", resume=kills > 0, **limit).status == 0:
            break
        kills += 1
    assert 5 <= kills < 60
    assert_same(tmp_path, undisturbed)
    iterations = [line["iteration"] for line in metrics(tmp_path)]
    assert iterations == sorted(iterations), "iterations that were repeated are in the metrics once"
    assert iterations[-1] == 40


@pytest.mark.parametrize("event", ["torn checkpoint", "damaged checkpoint", "missing checkpoint"])
def test_falls_back_to_the_newest_good_checkpoint(undisturbed: Path, tmp_path: Path, event: str) -> None:
    train(tmp_path, "train.max_iter=40", kill_at_event=40)
    newest = tmp_path / (tmp_path / "last_checkpoint").read_text()
    assert len(list(tmp_path.glob("model_0*.pth"))) >= 2
    if event == "torn checkpoint":
        newest.write_bytes(newest.read_bytes()[:-1000])
    elif event == "damaged checkpoint":  # which torch.load does not notice
        damage(newest)
    else:
        newest.unlink()
    run = train(tmp_path, "train.max_iter=40", resume=True)
    assert f"Resuming from the older {tmp_path}/model_" in run.output
    assert_same(tmp_path, undisturbed)


def test_no_good_checkpoint_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=4")
    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(path.read_bytes()[:100])
    message = fail("--config-file", TINY, "--resume", f"train.output_dir={tmp_path}")
    assert "no checkpoint" in message
    assert "truncated" in message
    assert str(tmp_path / "last_checkpoint") in message


def test_drawn_seed_is_kept(tmp_path: Path) -> None:
    # Killed before the first checkpoint, and once more after it.
    train(tmp_path, "train.seed=null", kill_at_event=8)
    assert not list(tmp_path.glob("model_*"))
    first = train(tmp_path, "train.seed=null", resume=True, kill_at_event=30).output
    second = train(tmp_path, "train.seed=null", resume=True).output
    seeds = {line.partition("Seed ")[2] for line in (first + second).splitlines() if "Seed " in line}
    assert len(seeds) == 1
    assert "Resumed from" in second
    seed = json.loads((tmp_path / "summary.json").read_text())["seed"]
    again = tmp_path / "again"
    train(again, f"train.seed={seed}")
    assert differences(load(again / "model_final.pth"), load(tmp_path / "model_final.pth")) == []


def test_other_seed_in_config_is_told(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=4")
    output = train(tmp_path, "train.max_iter=6", "train.seed=4", resume=True).output
    assert "train.seed=4, but the resumed training began with 3" in output


@pytest.mark.parametrize("override", ["model.width=8", "optimizer.weight_decay=0"])
def test_checkpoint_of_another_training_is_refused(tmp_path: Path, override: str) -> None:
    train(tmp_path, "train.max_iter=4")
    message = fail("--config-file", TINY, "--resume", f"train.output_dir={tmp_path}", override)
    assert "model_final.pth" in message


def test_resume_without_checkpoint_starts(tmp_path: Path) -> None:
    output = train(tmp_path, "train.max_iter=2", resume=True).output
    assert "holds no checkpoint to resume from" in output


def test_resume_of_a_finished_training_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    before = load(tmp_path / "model_final.pth")
    output = train(tmp_path, "train.max_iter=6", resume=True).output
    assert "Training finished" in output
    assert differences(load(tmp_path / "model_final.pth"), before) == []


def test_longer_training_is_resumed(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    train(tmp_path, "train.max_iter=8", resume=True)
    assert load(tmp_path / "model_final.pth")["iteration"] == 7


def test_averages_can_be_switched_off_and_on(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    averaged = load(tmp_path / "model_final.pth")
    assert "training_model" in averaged
    train(tmp_path, "train.max_iter=6", "train.ema.enabled=False", resume=True)
    train(tmp_path, "train.max_iter=7", "train.ema.enabled=False", resume=True)
    assert "training_model" not in load(tmp_path / "model_final.pth")
    train(tmp_path, "train.max_iter=8", resume=True)
    assert "training_model" in load(tmp_path / "model_final.pth")


def test_without_resume_the_earlier_run_is_set_aside(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    first = load(tmp_path / "model_final.pth")
    (tmp_path / "mine.txt").write_text("not of a training")
    output = train(tmp_path, "train.max_iter=6").output
    assert "held an earlier training" in output
    assert differences(load(tmp_path / "previous/1/model_final.pth"), first) == []
    assert differences(load(tmp_path / "model_final.pth"), first) == []
    assert (tmp_path / "mine.txt").exists()
    assert [line["iteration"] for line in metrics(tmp_path)] == [4, 5, 6]
    # A new training that is killed at once does not take up the old one.
    train(tmp_path, "train.max_iter=6", kill_at_event=15)
    assert "holds no checkpoint" in train(tmp_path, "train.max_iter=6", resume=True).output


def test_a_mistake_leaves_the_earlier_run_in_place(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    before = load(tmp_path / "model_final.pth")
    fail("--config-file", TINY, f"train.output_dir={tmp_path}", "train.init_checkpoint=nowhere.pth")
    assert not (tmp_path / "previous").exists()
    # And its weights may be what the next one starts from.
    train(tmp_path, "train.max_iter=6", f"train.init_checkpoint={tmp_path}/model_final.pth")
    assert differences(load(tmp_path / "previous/1/model_final.pth"), before) == []
    assert differences(load(tmp_path / "model_final.pth"), before) != []


def test_an_evaluation_is_not_repeated_when_resumed(tmp_path: Path) -> None:
    train(tmp_path, "train.max_iter=6")
    known = json.loads((tmp_path / "eval.json").read_text())
    output = train(tmp_path, "train.max_iter=6", resume=True).output
    assert "Start inference" not in output
    assert json.loads((tmp_path / "eval.json").read_text()) == known
    (tmp_path / "eval.json").unlink()
    assert "Start inference" in train(tmp_path, "train.max_iter=6", resume=True).output
    assert json.loads((tmp_path / "eval.json").read_text()) == known


def test_detectron2_loader_repeats_data_with_a_warning(tmp_path: Path) -> None:
    overrides = [
        "dataloader.train._target_=detectron2.data.build_detection_train_loader",
        "+dataloader.train.aspect_ratio_grouping=False",
    ]
    config = tmp_path / "config.py"
    config.write_text(
        "from detectron2.config import LazyConfig\n"
        f"cfg = LazyConfig.load({TINY!r})\n"
        "model, dataloader, optimizer, lr_multiplier, train = "
        "cfg.model, cfg.dataloader, cfg.optimizer, cfg.lr_multiplier, cfg.train\n"
        "del dataloader.train['seed']\n"
    )
    out = tmp_path / "out"
    train(out, "train.max_iter=4", *overrides, config=str(config))
    output = train(out, "train.max_iter=6", *overrides, config=str(config), resume=True).output
    assert "sees its first batches again" in output


def test_real_processes(tmp_path: Path, undisturbed: Path) -> None:
    """The same without the fork server: the command as it is typed, killed from outside when it has saved twice."""
    command = [sys.executable, TOOL, "--config-file", TINY, f"train.output_dir={tmp_path}", "train.max_iter=40"]
    command += ["model.pause=0.02"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "model_0000007.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9
    assert not (tmp_path / "model_final.pth").exists()
    assert run_tool(*command[2:4], "--resume", *command[4:-1]).status == 0
    assert_same(tmp_path, undisturbed)
