"""Finding, overriding and checking configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate

from piip.engine.config import apply_overrides, check_config, find_config, load_config
from piip.errors import ConfigError
from tests.engine.running import TINY

CONFIG = """
from detectron2.config import LazyCall as L
from torch import nn
from torch.optim import AdamW

from .schedules import {schedule} as lr_multiplier
from .train import train

model = L(nn.Sequential)()
optimizer = L(AdamW)(params=dict(model=None), lr=1e-3, betas=(0.9, 0.99))
dataloader = dict(train=dict(total_batch_size=16, mapper=dict(augmentations=[dict(size=3), dict(size=5)])))
train.epochs = {epochs}
"""


@pytest.fixture
def write_config(tmp_path: Path):
    """Writes a leaf config on top of the packaged train.py and schedules.py."""
    common = Path(find_config("common/train.py")).parent
    for name in ("train.py", "schedules.py"):
        (tmp_path / name).write_text((common / name).read_text())

    def write(schedule: str = "lr_multiplier_1x", epochs: int = 12) -> str:
        path = tmp_path / "leaf.py"
        path.write_text(CONFIG.format(schedule=schedule, epochs=epochs))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "epochs", "length", "steps"),
    [
        ("lr_multiplier_1x", 12, 87_960, (58_640, 80_630)),
        ("lr_multiplier_2x", 24, 175_920, (117_280, 161_260)),
        ("lr_multiplier_3x", 36, 263_880, (197_910, 241_890)),
    ],
)
def test_published_schedules(write_config, name: str, epochs: int, length: int, steps: tuple[int, int]) -> None:
    cfg = load_config(write_config(name, epochs))
    check_config(cfg)
    assert cfg.train.max_iter == length
    assert cfg.train.eval_period == 7330
    factor = instantiate(cfg.lr_multiplier)
    at = {i: factor(i / length) for i in (0, 250, 500, steps[0] - 1, steps[0], steps[1] - 1, steps[1], length - 1)}
    assert list(at.values()) == pytest.approx([0.001, 0.5005, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_batch_size_rescales_the_schedule(write_config) -> None:
    cfg = load_config(write_config(), ["dataloader.train.total_batch_size=8"])
    assert cfg.train.max_iter == 12 * 14659
    assert cfg.train.checkpointer.period == 14659
    assert cfg.lr_multiplier.warmup_length == pytest.approx(500 / (12 * 14659))


def test_length_and_epochs_can_be_set(write_config) -> None:
    assert load_config(write_config(), ["train.epochs=1"]).train.max_iter == 7330
    assert load_config(write_config(), ["train.max_iter=1e2", "train.epochs=1"]).train.max_iter == 100
    # A trial shorter than the warm-up still has one.
    short = load_config(write_config("lr_multiplier_cosine"), ["train.max_iter=10"])
    factor = instantiate(short.lr_multiplier)
    assert factor(0.0) == pytest.approx(0.01)
    assert factor(0.5) == pytest.approx(0.505, abs=0.01)
    assert factor(0.999) == pytest.approx(0.01, abs=1e-3)


def test_saved_config_is_loaded_again(write_config, tmp_path: Path) -> None:
    cfg = load_config(write_config(), ["train.ema.enabled=True"])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"), ["dataloader.train.total_batch_size=32"])
    check_config(again)
    assert again.train.ema.enabled
    assert again.train.max_iter == 12 * 3665


def test_overrides_set_existing_keys(write_config) -> None:
    cfg = load_config(
        write_config(),
        [
            "dataloader.train.mapper.augmentations.1.size=[7,9]",
            "train.ddp={find_unused_parameters: true}",
            "+model.new.key=text",
            "train.init_checkpoint='a file.pth'",
            "train.output_dir=12",
            "optimizer.betas.0=0.5",
            "train.checkpointer.max_to_keep=null",
            "optimizer.lr=1",
        ],
    )
    assert cfg.dataloader.train.mapper.augmentations == [{"size": 3}, {"size": [7, 9]}]
    assert cfg.train.ddp == {"broadcast_buffers": False, "find_unused_parameters": True, "gradient_compression": None}
    assert cfg.model.new.key == "text"
    assert cfg.train.init_checkpoint == "a file.pth"
    assert cfg.train.output_dir == "12"
    assert cfg.optimizer.betas == [0.5, 0.99]
    assert cfg.train.checkpointer.max_to_keep is None
    check_config(cfg)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ["'optimizer.lr'", "+optimizer.lrr="]),
        ("max_iter=3", ["'train.max_iter'"]),
        ("dataloader.train.maper.augmentations.0.size=1", ["'dataloader.train.mapper.augmentations.0.size'"]),
        ("dataloader.train.mapper.augmentations.2.size=1", ["has 0, 1"]),
        ("optimizer.lr.value=1", ["'optimizer.lr' is the value 0.001"]),
        ("train.max_iter=many", ["train.max_iter=many", "a number"]),
        ("train.amp.enabled=maybe", ["true or false"]),
        ("train.amp=True", ["a section with the keys enabled, dtype"]),
        ("train.amp.enabled", ["cannot be read", "key.path=value"]),
        ("optimizer.lr=1,2", ["[a,b]"]),
        ("~train.amp", ["set it to null"]),
        ("--resume", ["before the first key=value"]),
    ],
)
def test_wrong_overrides_are_explained(write_config, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), [override])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.max_iter=0", "train.max_iter=0 must be a whole number at least 1"),
        ("train.max_iter=1.5", "a whole number"),
        ("train.eval_period=-1", "at least 0"),
        ("train.amp.dtype=bfloat", "Did you mean 'bfloat16'"),
        ("train.ema.decay=1.0", "below 1"),
        ("train.clip_grad.max_norm=0", "above 0"),
        ("dataloader.train.total_batch_size=0", "must all be positive"),
        ("lr_multiplier=null", "lacks lr_multiplier"),
        ("optimizer.lr=${no.such.key}", "optimizer.lr has no value in the config: Interpolation key 'no.such.key'"),
        ("optimizer.lr=???", "optimizer.lr has no value"),
    ],
)
def test_values_that_cannot_work(write_config, override: str, part: str) -> None:
    cfg = load_config(write_config())
    if override.startswith("optimizer.lr="):
        cfg.optimizer.lr = override.partition("=")[2]
    else:
        apply_overrides(cfg, [override])
    with pytest.raises(ConfigError) as caught:
        check_config(cfg)
    assert part in str(caught.value)


def test_a_packaged_config_is_ones_own() -> None:
    name = "quickstart/mask_rcnn_piip_digits"
    changed = load_config(name, ["train.seed=5", "+model.extra=1"])
    changed.model.roi_heads.num_classes = 3
    fresh = load_config(name)
    assert "extra" not in fresh.model
    assert fresh.train.seed != 5
    assert fresh.model == LazyConfig.load(find_config(name)).model


def test_config_files_are_found_by_path_and_name() -> None:
    assert find_config(TINY) == TINY
    assert find_config("common/train").endswith("configs/common/train.py")
    with pytest.raises(ConfigError, match=r"Did you mean 'common/schedules.py'"):
        find_config("common/schedule.py")
    with pytest.raises(ConfigError, match=r"Did you mean 'common/schedules.py'"):
        find_config("schedules.py")  # without its folder
    with pytest.raises(ConfigError, match=r"tiny_config\.py"):
        find_config(TINY.replace("tiny", "teeny"))


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.py", "model = (", "cannot be read"),
        ("a.yaml", "model: [", "cannot be read"),
        ("a.py", "from .b import model", "b.py"),
        ("a.txt", "model: 3", "python or yaml"),
        ("a.yaml", "- 1", "not sections"),
        ("a.yaml", "MODEL: {WEIGHTS: x}", "yacs"),
        ("a.py", "model = dict(a=1)", "lacks dataloader, train, optimizer, lr_multiplier"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, name: str, content: str, part: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(str(path)))
    assert part in str(caught.value)


def test_configs_of_detectron2_get_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(
        "train = dict(output_dir='./output', init_checkpoint='', max_iter=90000, amp=dict(enabled=False),\n"
        "    ddp=dict(broadcast_buffers=False), checkpointer=dict(period=5000, max_to_keep=100),\n"
        "    eval_period=5000, log_period=20, device='cuda')\n"
        "model = optimizer = lr_multiplier = dict(a=1)\n"
        "dataloader = dict(train=dict(total_batch_size=16))\n"
    )
    cfg = load_config(str(path), ["train.ema.enabled=True"])
    check_config(cfg)
    assert (cfg.train.max_iter, cfg.train.checkpointer.max_to_keep, cfg.train.seed) == (90000, 100, None)
    assert cfg.train.ema.enabled
    assert "epochs" not in cfg.train
