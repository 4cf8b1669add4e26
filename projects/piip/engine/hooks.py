"""Hooks that Detectron2 lacks, or whose state would be lost when a training is killed and resumed."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..checkpoint.checkpointer import BEST, FINAL, Checkpointer
from ..errors import StorageError, did_you_mean
from ..stopping import Stopped, stop_request
from .ema import ModelEMA

__all__ = ["BestCheckpointHook", "CheckpointHook", "EMAHook", "EvalHook", "StopHook"]

logger = logging.getLogger(__name__)


class EMAHook(HookBase):
    """Moves the average of the weights after every step."""

    def __init__(self, ema: ModelEMA):
        self.ema = ema

    def after_step(self) -> None:
        self.ema.update(self.trainer.iter)


class CheckpointHook(HookBase):
    """Saves ``model_<iteration>.pth`` every ``period`` iterations, and ``model_final.pth`` after the last one.

    Unlike Detectron2's hook it also removes what earlier sessions of the same training left, and saves once, not
    twice, after the last iteration: a kill between the two would leave a finished training without its final file.
    A full disk costs a numbered checkpoint, not the training.

    Args:
        checkpointer: writes the files.
        period: iterations between them.
        max_to_keep: only so many of the newest numbered files stay; None keeps all.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None):
        self._checkpointer = checkpointer
        self._period = period
        self._keep = max_to_keep
        self._saved = -1

    def after_step(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.save()
        elif (self.trainer.iter + 1) % self._period == 0:
            self.try_to_save()

    def try_to_save(self) -> None:
        """Like :meth:`save`, but a full disk is only told."""
        try:
            self.save()
        except StorageError as error:
            logger.error("%s The training goes on without this checkpoint.", error)

    def save(self) -> None:
        """Saves the iteration that is done, unless that has happened.

        Raises:
            StorageError: when the disk is full and older checkpoints made too little room.
        """
        iteration = self.trainer.iter
        if iteration == self._saved:
            return
        final = iteration + 1 >= self.trainer.max_iter
        self._checkpointer.save(FINAL if final else f"model_{iteration:07d}", iteration=iteration)
        self._saved = iteration
        if self._keep is not None and not final:
            self._checkpointer.prune(self._keep)


class EvalHook(hooks.EvalHook):
    """Evaluates every ``period`` iterations and after the last one.

    Before that it has the iteration saved, so that an evaluation that fails or is stopped costs no training: it is
    resumed from there, and catches up on the evaluation first.

    Args:
        period: iterations between evaluations; 0 for the one at the end alone.
        evaluate: returns the results.
        checkpoints: saves.
    """

    def __init__(self, period: int, evaluate: Callable[[], Mapping[str, Any]], checkpoints: CheckpointHook):
        super().__init__(period, evaluate)
        self._checkpoints = checkpoints

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._checkpoints.try_to_save()
            self._do_eval()

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if self._period > 0 and 0 < start < self.trainer.max_iter and start % self._period == 0:
            self.trainer.storage.iter = start - 1
            self._do_eval()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class StopHook(HookBase):
    """Ends a training that was asked to stop: all processes in the same iteration, once it is saved.

    Args:
        checkpoints: saves.
    """

    def __init__(self, checkpoints: CheckpointHook):
        self._checkpoints = checkpoints

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.trainer.must_stop and done < self.trainer.max_iter:
            self._checkpoints.save()
            comm.synchronize()
            number = stop_request.number if stop_request else signal.SIGTERM
            logger.warning("Stopped by %s after iteration %d, which is saved.", signal.Signals(number).name, done)
            raise Stopped(number, together=True)


class BestCheckpointHook(HookBase):
    """Saves the weights whenever a metric is higher than ever before, across resumed sessions.

    It is told of evaluations by :meth:`offer`; being a hook lets its state travel in the checkpoints.

    Args:
        checkpointer: writes ``model_best.pth``.
        metric: task and metric as Detectron2 logs them, e.g. ``bbox/AP`` or ``segm/AP50``.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str):
        self.metric = metric
        self.best: float | None = None
        self.iteration: int | None = None
        self._checkpointer = checkpointer

    def offer(self, results: Mapping[str, float], iteration: int) -> None:
        """Looks at the results of an evaluation.

        Args:
            results: name to value, flat.
            iteration: the number of iterations done.
        """
        if self.metric not in results:
            logger.warning(
                "train.best_checkpointer.metric=%r is not among the results (%s), so no best checkpoint is kept.%s",
                self.metric,
                ", ".join(results),
                did_you_mean(self.metric, results),
            )
            return
        value = float(results[self.metric])
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best, self.iteration = value, iteration
            self._checkpointer.save_weights(BEST, iteration=iteration, metric=self.metric, value=value)
            logger.info("Best %s so far: %.3f after %d iterations", self.metric, value, iteration)

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["metric"] == self.metric:  # another metric starts anew
            self.best, self.iteration = state["best"], state["iteration"]
