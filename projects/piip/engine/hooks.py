"""Hooks that Detectron2 lacks, or whose state would be lost when a training is killed and resumed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase, hooks

from ..checkpoint.checkpointer import BEST, Checkpointer
from ..errors import did_you_mean
from .ema import ModelEMA

__all__ = ["BestCheckpointHook", "EMAHook", "EvalHook", "PeriodicCheckpointer"]

logger = logging.getLogger(__name__)


class EMAHook(HookBase):
    """Moves the average of the weights after every step."""

    def __init__(self, ema: ModelEMA):
        self.ema = ema

    def after_step(self) -> None:
        self.ema.update()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Saves every ``period`` iterations and after the last one, and removes all but the newest ``max_to_keep``.

    Unlike its parent it also removes what earlier sessions of the same training left.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int | None = None):
        super().__init__(checkpointer, period)
        self._keep = max_to_keep

    def after_step(self) -> None:
        super().after_step()
        if self._keep is not None and (self.trainer.iter + 1) % self.period == 0:
            self.checkpointer.prune(self._keep)


class EvalHook(hooks.EvalHook):
    """Evaluates every ``period`` iterations and after the last one.

    It comes after the checkpointer, so that an evaluation that fails costs no training. A training that was killed
    during an evaluation resumes from the checkpoint just before it, and catches up on the evaluation first.
    """

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if self._period > 0 and 0 < start < self.trainer.max_iter and start % self._period == 0:
            self.trainer.storage.iter = start - 1
            self._do_eval()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class BestCheckpointHook(HookBase):
    """Saves the weights whenever a metric is higher than ever before, across resumed sessions.

    It comes after the :class:`EvalHook`, whose results it finds in the storage.

    Args:
        checkpointer: writes ``model_best.pth``.
        metric: name as Detectron2 logs it, e.g. ``bbox/AP`` or ``segm/AP50``.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str):
        self.metric = metric
        self.best: float | None = None
        self.iteration: int | None = None
        self._checkpointer = checkpointer
        self._seen: int | None = None

    def _check(self) -> None:
        latest: Mapping[str, tuple[float, int]] = self.trainer.storage.latest()
        if self.metric not in latest:
            evaluated = [name for name in latest if "/" in name]
            if evaluated and self._seen is None:
                self._seen = -1
                logger.warning(
                    "train.best_checkpointer.metric=%r is not among the results (%s), so no best checkpoint is kept.%s",
                    self.metric,
                    ", ".join(evaluated),
                    did_you_mean(self.metric, evaluated),
                )
            return
        value, iteration = latest[self.metric]
        if iteration == self._seen or not math.isfinite(value):
            return
        self._seen = iteration
        if self.best is None or value > self.best:
            # Evaluations within the loop are stored under the step they follow, the last one under the step count.
            self.best, self.iteration = value, min(iteration + 1, self.trainer.max_iter)
            self._checkpointer.save_weights(BEST, iteration=self.iteration, metric=self.metric, value=value)
            logger.info("Best %s so far: %.3f after %d iterations", self.metric, value, self.iteration)

    def before_train(self) -> None:
        self._check()

    def after_step(self) -> None:
        self._check()

    def after_train(self) -> None:
        self._check()

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["metric"] == self.metric:  # another metric starts anew
            self.best, self.iteration = state["best"], state["iteration"]
