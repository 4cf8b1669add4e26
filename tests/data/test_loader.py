"""Loaders: same samples whatever the workers, from any iteration on; errors and signals arrive where they should."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch

from piip.data import DetectionMapper, build_test_loader, build_train_loader, coco_dataset, get_dataset_dicts
from piip.errors import ConfigError, DataError


class Draws:
    """A mapper that shows which random numbers it gets."""

    def __call__(self, record: dict) -> dict:
        numbers = (random.random(), np.random.rand(), torch.rand(()).item())
        return {"file_name": record["file_name"], "numbers": numbers}


@pytest.fixture
def dicts(digits: str) -> list[dict]:
    return get_dataset_dicts("digits_scenes_train")


def draw(loader, count: int, start: int = 0) -> list:
    loader.batch_sampler.start_iter = start
    return [[(sample["file_name"], sample["numbers"]) for sample in batch] for batch in islice(loader, count)]


def test_resumes_anywhere_with_any_number_of_workers(dicts: list[dict]) -> None:
    def loader(num_workers: int):
        return build_train_loader(dicts, Draws(), total_batch_size=5, num_workers=num_workers, seed=3)

    whole = draw(loader(0), 12)
    assert draw(loader(0), 5, start=7) == whole[7:]
    assert draw(loader(2), 12) == whole
    assert draw(loader(1), 8, start=4) == whole[4:]
    numbers = [number for batch in whole for _, numbers in batch for number in numbers]
    assert len(set(numbers)) == len(numbers)  # no two samples share their randomness, not even of the same image


def test_a_loader_with_workers_can_be_started_again(dicts: list[dict]) -> None:
    loader = build_train_loader(dicts, Draws(), total_batch_size=4, num_workers=1, seed=3)
    assert draw(loader, 6)[4:] == draw(loader, 2, start=4)


def test_seeds(dicts: list[dict]) -> None:
    by_seed = [draw(build_train_loader(dicts, Draws(), 4, seed=seed), 3) for seed in (1, 1, 2)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    draw(build_train_loader(dicts, Draws(), 4, seed=None), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_random_generators_are_left_alone(dicts: list[dict], num_workers: int) -> None:
    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    draw(build_train_loader(dicts, Draws(), 4, num_workers, seed=1), 3)
    list(build_test_loader(dicts, Draws(), num_workers))
    assert state() == before


def test_augmentations_follow_the_position(dicts: list[dict]) -> None:
    mapper = DetectionMapper(
        is_train=True,
        augmentations=[T.RandomFlip(), T.RandomContrast(0.5, 1.5), T.RandomCrop("relative_range", (0.5, 0.5))],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    loaders = [build_train_loader(dicts, mapper, 6, workers, seed=9) for workers in (0, 2)]
    loaders[1].batch_sampler.start_iter = 2
    for a, b in zip(list(islice(loaders[0], 5))[2:], islice(loaders[1], 3), strict=True):
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
            assert torch.equal(one["instances"].gt_masks.tensor, other["instances"].gt_masks.tensor)


def test_wide_and_high_images_keep_apart(own_data) -> None:
    data = coco_dataset("own", own_data.json, own_data.images, own_data.classes)  # two wide, two others
    wide = {d["file_name"] for d in data if d["width"] > d["height"]}
    grouped = [{s[0] in wide for s in batch} for batch in draw(build_train_loader(data, Draws(), 2, seed=0), 20)]
    assert all(len(kinds) == 1 for kinds in grouped)
    loader = build_train_loader(data, Draws(), 2, seed=0, aspect_ratio_grouping=False)
    assert any(len({s[0] in wide for s in batch}) == 2 for batch in draw(loader, 20))
    assert len(loader.dataset) == 4


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (2, 1), (0, 5)])
def test_a_test_goes_through_all_images_once(dicts: list[dict], num_workers: int, batch_size: int) -> None:
    loader = build_test_loader(dicts, Draws(), num_workers, batch_size)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-24 // batch_size)
    assert [s["file_name"] for batch in batches for s in batch] == [d["file_name"] for d in dicts]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_errors_arrive_as_they_were_raised(own_data, num_workers: int) -> None:
    data = coco_dataset("own", own_data.json, own_data.images, own_data.classes)
    mapper = DetectionMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    Path(data[1]["file_name"]).write_bytes(b"")
    for loader in (build_train_loader(data, mapper, 4, num_workers, seed=0), build_test_loader(data, mapper)):
        with pytest.raises(DataError, match=r"^The image '.*1.png' cannot be read") as caught:
            list(islice(loader, 4))
        assert "Traceback" not in str(caught.value)


def test_masks_are_checked_before_training(own_data) -> None:
    own_data.content["annotations"][3].pop("segmentation")
    own_data.write()
    data = coco_dataset("own", own_data.json, own_data.images, own_data.classes)
    mapper = DetectionMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    with pytest.raises(DataError, match=r"3.png' has an object without a mask"):
        build_train_loader(data, mapper, 2)
    mapper = DetectionMapper(is_train=True, augmentations=[], image_format="RGB")
    assert len(next(iter(build_train_loader(data, mapper, 2, seed=0)))) == 2


def test_impossible_settings(dicts: list[dict]) -> None:
    with pytest.raises(DataError, match="24 image"):
        build_train_loader(dicts, Draws(), 25)
    with pytest.raises(ConfigError, match=r"num_workers .* is -1"):
        build_train_loader(dicts, Draws(), 2, num_workers=-1)
    with pytest.raises(ConfigError, match="batch_size must be positive"):
        build_test_loader(dicts, Draws(), batch_size=0)
    with pytest.raises(DataError, match="no images"):
        build_test_loader([], Draws())


SIGNALLED = """
    import os, signal, sys
    from multiprocessing import active_children
    from piip.data import build_train_loader

    class Name:
        def __call__(self, record):
            return record["file_name"]

    if __name__ == "__main__":
        data = [{"file_name": str(i), "width": 1, "height": 1} for i in range(8)]
        batches = iter(build_train_loader(data, Name(), 2, num_workers=2, seed=0))  # alive until the process ends
        next(batches)
        workers = [child.pid for child in active_children()]
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            for worker in workers:
                os.system(f"kill -{int(number)} {worker}")  # from another process than the parent
        for _ in range(20):
            next(batches)
        print("went on", *workers, flush=True)
"""


def test_workers_outlive_signals_but_not_the_training(tmp_path: Path) -> None:
    script = tmp_path / "signalled.py"
    script.write_text(textwrap.dedent(SIGNALLED))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    message, *workers = result.stdout.rsplit(" ", 2)
    assert message == "went on"
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker), signal.SIGCONT)
