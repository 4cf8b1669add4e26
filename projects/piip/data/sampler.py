"""The order in which a training sees its images: a pure function of a few numbers, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ..errors import ConfigError, DataError

__all__ = ["TrainBatchSampler"]


class TrainBatchSampler(Sampler):
    """Endless batches of shuffled images.

    Every epoch shuffles all images anew and cuts them into batches of one group; what does not fill a batch is
    carried over to the next epoch, so that every epoch draws every image exactly once. The stream of *global* batches
    depends on ``seed``, ``groups`` and ``total_batch_size`` alone: each of N processes takes its slice of the very
    batches that one process would see. (Detectron2 groups within the batch of each process, so its batches depend on
    how many there are.)

    With ``repeats`` above 1, for repeated augmentation (Hoffer et al., arXiv:1901.09335), an epoch has as many samples
    as before, but draws only a part of the images, each so often. The copies of an image come in one batch, as far
    apart as possible, so that different processes get them. (timm's ``RepeatAugSampler`` does the same.)

    Args:
        groups: ``(M,)``, for each image the group that it may share a batch with.
        total_batch_size: images per iteration over all processes.
        seed: of the shuffling.
        rank: of this process.
        world_size: number of processes.
        repeats: how often an image is drawn at a time.

    Attributes:
        start_iter: iteration at which the next ``iter()`` begins; set it before iterating.

    Yields:
        The batch of this process: pairs ``(index, position)`` of an image and its place in the global stream of
        samples. The position is different for every sample of a training.

    Raises:
        ConfigError: if the batch size or the repeats are not positive, or the batch cannot be shared equally.
        DataError: if there are fewer images than a batch holds.
    """

    def __init__(
        self,
        groups: Sequence[int],
        total_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ConfigError(
                f"The total batch size is {total_batch_size}, which {world_size} process(es) cannot share equally; set "
                f"dataloader.train.total_batch_size to a multiple of {world_size}."
            )
        if len(groups) < total_batch_size:
            raise DataError(
                f"The training set has {len(groups)} image(s), fewer than one batch of {total_batch_size}; set "
                "dataloader.train.total_batch_size lower or add images."
            )
        if repeats < 1:
            raise ConfigError(f"repeats={repeats} of the training images must be at least 1.")
        self.start_iter = 0
        self._repeats = repeats
        # Within a batch, first one copy of every image, then the second ones, ...
        self._spread = np.argsort(np.arange(total_batch_size) % repeats, kind="stable")
        self._groups = np.asarray(groups)
        self._total = total_batch_size
        self._seed = seed
        share = total_batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        carried = np.empty(0, dtype=np.int64)
        first = epoch = 0  # the iteration that the epoch begins with
        while True:
            batches, carried = self._epoch(epoch, carried)
            for iteration in range(max(first, self.start_iter), first + len(batches)):
                positions = range(iteration * self._total, (iteration + 1) * self._total)[self._mine]
                yield list(zip(batches[iteration - first, self._mine].tolist(), positions, strict=True))
            first += len(batches)
            epoch += 1

    def _epoch(self, epoch: int, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batches ``(K, total_batch_size)`` that an epoch completes, and the images that wait for the next one."""
        rng = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        drawn = rng.permutation(len(self._groups)).repeat(self._repeats)[: len(self._groups)]
        order = np.concatenate([carried, drawn])
        batches, ends, left = [], [], []
        for group in np.unique(self._groups):
            places = np.flatnonzero(self._groups[order] == group)
            full = len(places) // self._total * self._total
            batches.append(order[places[:full]].reshape(-1, self._total))
            ends.append(places[:full].reshape(-1, self._total)[:, -1])
            left.append(places[full:])
        by_end = np.argsort(np.concatenate(ends))  # a batch comes when its last image does
        return np.concatenate(batches)[by_end][:, self._spread], order[np.sort(np.concatenate(left))]
