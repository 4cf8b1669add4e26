"""The stream of training batches: shuffled, grouped, shared among processes, and the same from any iteration on."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest

from piip.data import TrainBatchSampler
from piip.errors import ConfigError, DataError

GROUPS = [int(i % 3 == 0) for i in range(50)]  # 17 and 33 images


def batches(count: int, start: int = 0, **changes) -> list:
    sampler = TrainBatchSampler(**{"groups": GROUPS, "total_batch_size": 4, "seed": 5, **changes})
    sampler.start_iter = start
    return list(islice(sampler, count))


def test_any_iteration_can_be_the_first() -> None:
    whole = batches(60)
    for start in (0, 1, 11, 12, 13, 25, 37, 59):
        assert batches(60 - start, start) == whole[start:]


def test_positions_count_all_samples() -> None:
    positions = [position for batch in batches(30) for _, position in batch]
    assert positions == list(range(120))


def test_groups_do_not_mix() -> None:
    for batch in batches(100):
        assert len({GROUPS[index] for index, _ in batch}) == 1


def test_an_epoch_shows_every_image_once() -> None:
    stream = [index for batch in batches(200) for index, _ in batch]
    for passes in range(1, 17):
        # What is drawn but waits for its batch to fill is less than a batch of either group.
        seen = np.bincount(stream[: passes * 50], minlength=50)
        assert seen.sum() == passes * 50
        assert seen.min() >= passes - 1
        assert seen.max() <= passes + 1
    alone = [index for batch in batches(25, groups=[0] * 50) for index, _ in batch]
    assert sorted(alone[:50]) == sorted(alone[50:]) == list(range(50))  # 50 images are 12.5 batches
    assert alone[:50] != alone[50:]


def test_small_groups_wait_for_their_batch() -> None:
    stream = batches(40, groups=[1, *[0] * 9], total_batch_size=8)
    assert sum(index == 0 for batch in stream for index, _ in batch) in range(24, 41)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_same_batches(world_size: int) -> None:
    whole = batches(40)
    shares = [batches(40, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


def test_seeds_differ() -> None:
    assert batches(5, seed=6) != batches(5)
    assert batches(5) == batches(5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"total_batch_size": 3, "world_size": 2}, ConfigError, "is 3, which 2 process.* multiple of 2"),
        ({"total_batch_size": 0}, ConfigError, "is 0"),
        ({"total_batch_size": 51}, DataError, "has 50 image.*batch of 51"),
        ({"groups": []}, DataError, "has 0 image"),
    ],
)
def test_impossible_batches(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batches(1, **changes)
