"""The training tool: its help, its errors, and Detectron2's own configs."""

from __future__ import annotations

import json
from pathlib import Path

import detectron2
import pytest

from piip.engine.config import find_config
from tests.engine.running import TINY, differences, fail, load, run_tool, train

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def test_help_shows_the_options() -> None:
    run = run_tool("--help")
    assert run.status == 0
    for option in ("--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines", "--dist-url"):
        assert option in run.output
    assert "torchrun --nproc-per-node 2 lazyconfig_train_net.py" in run.output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config-file", "quickstart/mask_rcnn_pip_digits.py"], ["quickstart/mask_rcnn_piip_digits.py"]),
        (["--config-file", ""], ["config file ''"]),
        (["--config-file", TINY, "optimizer.lrr=1"], ["'optimizer.lrr'", "'optimizer.lr'", "+optimizer.lrr"]),
        (["--config-file", TINY, "model.widht=1"], ["'model.width'"]),
        (["--config-file", TINY, "train.max_iter=ten"], ["train.max_iter=ten", "a number"]),
        (["--config-file", TINY, "train.max_iter=10", "--resume"], ["'--resume'", "before the first key=value"]),
        (["--config-file", TINY, "train.amp.enabled=True", "train.amp.dtype=float16"], ["needs a GPU", "bfloat16"]),
        (["--config-file", str(ZOO / "COCO-Detection/retinanet_R_50_FPN_1x.yaml")], ["yacs"]),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    if "optimizer" not in " ".join(arguments) and "--resume" not in arguments and TINY in arguments:
        arguments = [*arguments, f"train.output_dir={tmp_path}"]
    message = fail(*arguments)
    for part in parts:
        assert part in message


# A config file that is another one, on a few of the bundled scenes.
ON_FEW_SCENES = """
from detectron2.config import LazyConfig
from piip.data.datasets import generate_digits_scenes, register_digits_scenes

cfg = LazyConfig.load({base!r})
root = {root!r}
generate_digits_scenes(root, {{"train": 8, "val": 4}})
register_digits_scenes(root)
model, dataloader, optimizer, lr_multiplier, train = (
    cfg.model, cfg.dataloader, cfg.optimizer, cfg.lr_multiplier, cfg.train
)
"""


@pytest.fixture(scope="module")
def on_few_scenes(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("few_scenes")

    def write(base: str) -> str:
        path = root / f"{Path(base).stem}.py"
        path.write_text(ON_FEW_SCENES.format(root=str(root), base=base))
        return str(path)

    return write


DETECTRON2 = str(ZOO / "COCO-InstanceSegmentation" / "mask_rcnn_R_50_FPN_1x.py")
SMALL = [
    "train.init_checkpoint=",
    "train.max_iter=2",
    "train.report.enabled=False",
    "train.log_period=1",
    "optimizer.lr=1e-5",
    "dataloader.train.dataset.names=digits_scenes_train",
    "dataloader.test.dataset.names=digits_scenes_val",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "+dataloader.train.mapper.instance_mask_format=bitmask",
]


def test_config_of_detectron2_trains_and_evaluates(tmp_path: Path, on_few_scenes) -> None:
    config = on_few_scenes(DETECTRON2)
    run = run_tool("--config-file", config, f"train.output_dir={tmp_path}", *SMALL, "model.roi_heads.num_classes=10")
    assert run.status == 0, run.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert "bbox" in summary["results"]


def test_wrong_number_of_classes_fails_before_training(tmp_path: Path, on_few_scenes) -> None:
    message = fail("--config-file", on_few_scenes(DETECTRON2), f"train.output_dir={tmp_path}", *SMALL)
    assert "10 categories" in message
    assert "80" in message


def test_quickstart_survives_a_kill(tmp_path: Path, on_few_scenes) -> None:
    config = on_few_scenes(find_config("quickstart/mask_rcnn_piip_digits.py"))
    overrides = [
        "train.max_iter=3",
        "train.eval_period=0",
        "train.checkpointer.period=1",
        "train.log_period=1",
        "train.device=cpu",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
    ]
    train(tmp_path / "undisturbed", *overrides, "train.report.enabled=False", config=config)
    killed = tmp_path / "killed"
    # Before and while the first checkpoints are written.
    for event in (10, 26):
        assert train(killed, *overrides, config=config, resume=True, kill_at_event=event).status == -9
    assert (killed / "last_checkpoint").exists()
    assert not (killed / "model_final.pth").exists()
    assert "Resumed from" in train(killed, *overrides, "train.report.num_images=1", config=config, resume=True).output
    final = [load(folder / "model_final.pth") for folder in (tmp_path / "undisturbed", killed)]
    assert differences(*final) == []
    assert list((killed / "report").glob("*.png"))
