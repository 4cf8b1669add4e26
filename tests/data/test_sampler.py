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


def test_repeated_augmentation_draws_a_third_of_the_images_three_times() -> None:
    plain = {"groups": [0] * 48, "total_batch_size": 12, "repeats": 3}
    epoch = batches(4, **plain)
    for batch in epoch:
        drawn = [index for index, _ in batch]
        assert drawn[:4] == drawn[4:8] == drawn[8:]
        assert len(set(drawn)) == 4
    assert len({index for batch in epoch for index, _ in batch}) == 16
    assert [position for batch in epoch for _, position in batch] == list(range(48))
    assert batches(5, 3, **plain) == batches(8, **plain)[3:]
    # Each of three processes gets one copy of every image.
    shares = [batches(4, rank=rank, world_size=3, **plain) for rank in range(3)]
    assert len({tuple(index for index, _ in share[0]) for share in shares}) == 1
    assert [a + b + c for a, b, c in zip(*shares, strict=True)] == epoch


def test_repeats_that_do_not_divide_the_batch() -> None:
    drawn = [index for batch in batches(12, groups=[0] * 50, total_batch_size=8, repeats=3) for index, _ in batch]
    assert np.bincount(drawn, minlength=50).max() <= 6  # at most three in each of two epochs
    with pytest.raises(ConfigError, match="repeats=0"):
        batches(1, repeats=0)
