"""Loaders of training and test data: reproducible to the bit, whatever the number of workers, at any iteration.

Detectron2's loaders draw augmentations from one stream of random numbers per worker, which depends on the number of
workers and cannot be taken up in the middle. Here each sample has a seed of its own, made of the training's seed and
the sample's position, and the generators of the process are left as they were found.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..errors import ConfigError, DataError, UserError
from .datasets.coco import check_masks
from .sampler import TrainBatchSampler

__all__ = ["Loader", "build_test_loader", "build_train_loader"]


class Loader(DataLoader):
    """A ``DataLoader`` whose batches are lists, and whose user errors arrive as they were raised.

    PyTorch would wrap an error of a worker into its traceback. Iterating leaves all random generators alone.
    """

    def __init__(self, dataset: Dataset, num_workers: int, **kwargs: Any) -> None:
        if num_workers < 0:
            raise ConfigError(f"num_workers of a data loader must not be negative, but is {num_workers}.")
        super().__init__(
            dataset,
            num_workers=num_workers,
            collate_fn=_same,
            worker_init_fn=_init_worker,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
            **kwargs,
        )

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, UserError):
                    try:
                        raise sample
                    finally:
                        # Else the error holds this frame, which holds the error, and the workers, which then end
                        # some garbage collection and five seconds later.
                        del sample, batch
            yield batch


def build_train_loader(
    dataset: list[dict],
    mapper: Callable[[dict], dict],
    total_batch_size: int,
    num_workers: int = 0,
    seed: int | None = None,
    aspect_ratio_grouping: bool = True,
    repeats: int = 1,
) -> Loader:
    """Makes the loader of a training.

    Args:
        dataset: images in Detectron2's dataset format.
        mapper: makes one sample for the model from one of them. It may draw from ``random``, ``numpy.random`` and
            torch's CPU generator.
        total_batch_size: images per iteration over all processes.
        num_workers: processes that load data beside each training process; with 0 the training process does it.
        seed: of the order of images and of the augmentations; ``None`` takes a random one.
        aspect_ratio_grouping: put wide and high images into separate batches, which need less padding.
        repeats: how often an image is drawn at a time, each with its own augmentation; fewer images make an epoch then.

    Returns:
        Yields, for ever, the list of samples of this process. Same seed, data and batch size: same batches. To
        resume at an iteration, set ``batch_sampler.start_iter`` before drawing the first one.

    Raises:
        ConfigError: for sizes that are not positive, or a batch that the processes cannot share.
        DataError: if there are fewer images than a batch holds, or objects without masks where the mapper wants them.
    """
    if getattr(mapper, "use_instance_mask", False):
        check_masks(dataset)
    if seed is None:
        seed = comm.shared_random_seed()
    groups = [int(aspect_ratio_grouping and image.get("width", 0) > image.get("height", 0)) for image in dataset]
    sampler = TrainBatchSampler(groups, total_batch_size, seed, comm.get_rank(), comm.get_world_size(), repeats)
    return Loader(_Samples(dataset, mapper, seed), num_workers, batch_sampler=sampler)


def build_test_loader(
    dataset: list[dict], mapper: Callable[[dict], dict], num_workers: int = 0, batch_size: int = 1
) -> Loader:
    """Makes a loader that goes once through the data; of several processes each takes a contiguous part.

    Args:
        dataset: images in Detectron2's dataset format.
        mapper: makes one sample for the model from one of them.
        num_workers: see :func:`build_train_loader`.
        batch_size: images per batch of each process.

    Raises:
        ConfigError: for sizes that are not positive.
        DataError: if there is no image.
    """
    if batch_size < 1:
        raise ConfigError(f"dataloader.test.batch_size must be positive, but is {batch_size}.")
    if not len(dataset):
        raise DataError("The test set has no images; check dataloader.test.dataset.")
    samples = _Samples(dataset, mapper, seed=0)
    return Loader(samples, num_workers, sampler=InferenceSampler(len(dataset)), batch_size=batch_size)


class _Samples(Dataset):
    """Mapped samples; the key is ``(index, position)``, or an index that is its own position."""

    def __init__(self, dataset: list[dict], mapper: Callable[[dict], dict], seed: int) -> None:
        self._dicts = DatasetFromList(dataset, copy=False)  # packed, so that workers share the memory
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        index, position = key if isinstance(key, tuple) else (key, key)
        with _random_state(self._seed, position):
            try:
                return self._mapper(self._dicts[index])
            except UserError as error:
                return error


@contextlib.contextmanager
def _random_state(*entropy: int) -> Iterator[None]:
    """Seeds the CPU generators of Python, numpy and torch, and puts them back as they were.

    ``torch.manual_seed`` would reach the GPU's generators too, which belong to the model.
    """
    words = np.random.SeedSequence(entropy).generate_state(3, np.uint64).tolist()
    saved = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.default_generator.set_state(saved[2])


def _same(batch: list) -> list:
    return batch


def _init_worker(worker_id: int) -> None:
    """Makes a worker deaf to signals that are meant for the training, which decides itself when to stop.

    Ctrl-C and a cluster's warnings reach every process of the job; a training that wants to finish its step and save
    needs its workers for that. They end when the loader tells them, or when their parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # without it, as on macOS, SIGTERM keeps ending workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parents_sigterm, daemon=True).start()


def _await_parents_sigterm() -> None:
    """Ends the worker at a SIGTERM from its parent, which Python sends when it exits, and at no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
