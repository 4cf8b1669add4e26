"""What a training writes while it runs: a line of progress, metrics as JSON lines, TensorBoard events."""

from __future__ import annotations

import datetime
import json
import logging
import os
import resource
import sys
from collections.abc import Callable

import torch
from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..checkpoint.files import disk_is_full, write_atomically

__all__ = ["METRICS_FILE", "ProgressPrinter", "build_writers", "memory_mb"]

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def memory_mb() -> float:
    """Peak memory of this process in MiB: allocated on the GPU where one is in use, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class ProgressPrinter(EventWriter):
    """Logs one line: iteration, remaining time, losses, learning rate, images per second, times and memory.

    Args:
        max_iter: where the training ends.
        window: values are medians over this many iterations.
    """

    def __init__(self, max_iter: int, window: int = 20):
        self.max_iter = max_iter
        self.window = window

    def write(self) -> None:
        storage = get_event_storage()
        if storage.latest().get("total_loss", (0.0, -1))[1] != storage.iter:
            return  # called after the last iteration, or one that failed
        done = storage.iter + 1
        storage.put_scalar("memory_mb", memory_mb(), smoothing_hint=False)
        values = {name: history.median(self.window) for name, history in storage.histories().items()}
        seconds = self._seconds_per_iteration(storage)
        parts = [f"iter {done}/{self.max_iter}"]
        if seconds is not None:
            remaining = seconds * (self.max_iter - done)
            storage.put_scalar("eta_seconds", remaining, smoothing_hint=False)
            parts.append(f"eta {datetime.timedelta(seconds=int(remaining))}")
        parts += [f"{name} {value:.4g}" for name, value in values.items() if "loss" in name]
        if "grad_norm" in values:
            parts.append(f"grad_norm {values['grad_norm']:.3g}")
        if "lr" in values:
            parts.append(f"lr {storage.history('lr').latest():.3g}")
        if "img_per_s" in values:
            parts.append(f"{values['img_per_s']:.3g} img/s")
        if seconds is not None:
            parts.append(f"{seconds:.3f} s/it (data {values.get('data_time', 0.0):.3f})")
        parts.append(f"{'gpu' if torch.cuda.is_initialized() else 'mem'} {memory_mb():.0f} MB")
        logger.info("  ".join(parts))

    @staticmethod
    def _seconds_per_iteration(storage: EventStorage) -> float | None:
        # Put by the IterationTimer hook, but not in the first iterations.
        return storage.history("time").median(1000) if "time" in storage.histories() else None


def build_writers(output_dir: str, max_iter: int, start_iter: int) -> list[EventWriter]:
    """The writers of a training that starts at ``start_iter``; what was written beyond that is taken back."""
    path = os.path.join(output_dir, METRICS_FILE)
    _keep_metrics_before(path, start_iter)
    files = [JSONWriter(path), TensorboardXWriter(output_dir, purge_step=start_iter)]
    return [ProgressPrinter(max_iter), *map(_Dispensable, files)]


class _Dispensable(EventWriter):
    """A writer of files whose failure on a full disk does not end the training."""

    def __init__(self, writer: EventWriter):
        self._writer = writer
        self._failed = False

    def write(self) -> None:
        self._try(self._writer.write)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            if not disk_is_full(error):
                raise
            if not self._failed:
                logger.error("%s has no room on the disk; the training goes on.", type(self._writer).__name__)
            self._failed = True


def _keep_metrics_before(path: str, start_iter: int) -> None:
    """Drops the lines of iterations that a resumed training repeats, and a line that a kill cut short."""
    if not os.path.isfile(path):
        return
    kept = []
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                if json.loads(line)["iteration"] < start_iter:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
    write_atomically(path, lambda f: f.write("".join(kept).encode()))
