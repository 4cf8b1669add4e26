"""The training loop: one step after another, each from its own seed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn

from ..compat import after_backward
from ..errors import ConfigError, UserError
from ..stopping import stop_request
from .parallel import accumulating, average_whole_gradients, clip_gradients
from .seeding import seed_step

__all__ = ["DivergenceError", "Trainer"]

logger = logging.getLogger(__name__)


class DivergenceError(UserError, FloatingPointError):
    """The loss or the gradient of a training became infinite or NaN."""


class Trainer(TrainerBase):
    """Detectron2's loop with hooks; a step is forward, backward, clipping and update, in the chosen precision.

    Like Detectron2's ``SimpleTrainer`` and ``AMPTrainer``, except that it also trains in half precision without a GPU,
    that nothing random is carried from one step to the next, that all processes learn of a loss that is not finite,
    and that the data loader starts at the iteration where the training does.

    Args:
        model: in training mode; takes a batch and returns a dict of losses, or one loss.
        data_loader: endless. Where it has ``batch_sampler.start_iter``, that is set to the first iteration.
        optimizer: of the model's parameters.
        seed: from which every step is seeded, see :func:`piip.engine.seeding.seed_step`.
        amp_dtype: of autocast; None for none. float16 needs a GPU and scales the loss.
        max_norm: the gradient is clipped to this norm; None for no clipping.
        norm_type: which norm that is.
        adaptive: clip the gradient of every unit (row of a weight, or vector) to ``max_norm`` times the norm of that
            unit's weights instead (Brock et al., arXiv:2102.06171).
        accumulate: into how many equal parts a process divides its share of a batch, to run one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        amp_dtype: torch.dtype | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        adaptive: bool = False,
        accumulate: int = 1,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.adaptive = adaptive
        self.accumulate = accumulate
        self.device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype == torch.float16)
        self.seconds = 0.0  # of training, over all its sessions
        self.must_stop = False  # some process has been asked to; the same in all processes
        self._batches: Iterator = iter(())

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs iterations ``start_iter`` to ``max_iter - 1``, and the hooks around them.

        Raises:
            DivergenceError: when a loss is not finite.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        begin, before = time.perf_counter(), self.seconds
        with EventStorage(start_iter) as self.storage, stop_request.deferred():
            try:
                self.before_train()
                self._batches = self._batches_from(start_iter)
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.seconds = before + time.perf_counter() - begin
                    self.after_step()
                self.iter = max(start_iter, max_iter)  # tells after_train that all went well
            except UserError as error:
                logger.error("Training stopped: %s", error)
                raise
            except Exception:
                logger.exception("Exception in iteration %d:", self.iter)
                raise
            finally:
                self._batches = iter(())
                self.after_train()
                self.seconds = before + time.perf_counter() - begin

    def _batches_from(self, start_iter: int) -> Iterator:
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if hasattr(sampler, "start_iter"):
            sampler.start_iter = start_iter
        elif start_iter > 0:
            logger.warning(
                "The data loader %s cannot start at iteration %d: the resumed training sees its first batches again.",
                type(self.data_loader).__name__,
                start_iter,
            )
        seed_step(self.seed, start_iter, comm.get_rank(), stream=2)  # worker processes start from these numbers
        return iter(self.data_loader)

    def run_step(self) -> None:
        """One iteration."""
        start = time.perf_counter()
        # Once for what loads data in this process, once for the model: with or without worker processes, the model
        # draws the same numbers.
        seed_step(self.seed, self.iter, comm.get_rank(), stream=0)
        try:
            batch = next(self._batches)
        except StopIteration:
            raise ConfigError(
                f"dataloader.train ended before iteration {self.iter}; the loader of a training must be endless."
            ) from None
        data_time = time.perf_counter() - start
        seed_step(self.seed, self.iter, comm.get_rank(), stream=1)

        self.optimizer.zero_grad()
        parts = self._divide(batch)
        losses: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with accumulating(self.model, last=i == len(parts) - 1):
                with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                    found = {name: loss / len(parts) for name, loss in self._losses(part).items()}
                self.grad_scaler.scale(sum(found.values())).backward()
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in found.items()}
        average_whole_gradients(self.model)
        after_backward(self)
        self._record_losses(losses, data_time)
        self._update()
        images = len(batch) * comm.get_world_size()
        self.storage.put_scalar("img_per_s", images / (time.perf_counter() - start))

    def _divide(self, batch: Any) -> list[Any]:
        if self.accumulate == 1:
            return [batch]
        if not isinstance(batch, list) or len(batch) % self.accumulate:
            what = f"one of {len(batch)} samples" if isinstance(batch, list) else f"a {type(batch).__name__}"
            raise ConfigError(
                f"train.accumulate={self.accumulate} needs batches that are lists of a multiple of so many samples, "
                f"and dataloader.train gave {what}."
            )
        size = len(batch) // self.accumulate
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        try:
            losses = self.model(batch)
        except FloatingPointError as error:  # Detectron2's proposal generators look at their own predictions
            raise DivergenceError(f"Iteration {self.iter}: {error} {self._remedy()}") from error
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _update(self) -> None:
        if self.max_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            if self.adaptive:
                adaptive_clip_grad(parameters, self.max_norm, norm_type=self.norm_type)
            norm = clip_gradients(parameters, math.inf if self.adaptive else self.max_norm, self.norm_type)
            # The scaler skips such a step and lowers its scale; without one it would end all weights.
            if not math.isfinite(norm) and not self.grad_scaler.is_enabled():
                raise DivergenceError(f"The gradient's norm became {norm} at iteration {self.iter}. {self._remedy()}")
            self.storage.put_scalar("grad_norm", norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _record_losses(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Puts the losses, averaged over all processes, and the longest data time into the storage.

        The same exchange tells all processes whether one of them has been asked to stop.
        """
        values = torch.stack([v.detach().float().reshape(()) for v in losses.values()])
        values = torch.cat([values, values.new_tensor([data_time, float(bool(stop_request))])])
        if (world := comm.get_world_size()) > 1:
            gathered = [torch.empty_like(values) for _ in range(world)]
            dist.all_gather(gathered, values)
            table = torch.stack(gathered)
            values = torch.cat([table[:, :-2].mean(0), table[:, -2:].amax(0)])
        *means, data_time, stop = values.tolist()
        self.must_stop = stop > 0
        means = dict(zip(losses, means, strict=True))
        if not math.isfinite(total := sum(means.values())):
            bad = ", ".join(f"{name}={value}" for name, value in means.items() if not math.isfinite(value)) or "the sum"
            raise DivergenceError(f"The loss is not finite at iteration {self.iter} ({bad}). {self._remedy()}")
        self.storage.put_scalar("data_time", data_time)
        self.storage.put_scalar("total_loss", total)
        if len(means) > 1:
            self.storage.put_scalars(**means)

    def _remedy(self) -> str:
        remedy = "Lower optimizer.lr"
        if self.max_norm is None:
            remedy += ", set train.clip_grad.enabled=True"
        if self.amp_dtype is not None:
            other = "train.amp.dtype=bfloat16 or " if self.amp_dtype == torch.float16 else ""
            remedy += f", or try {other}train.amp.enabled=False"
        return f"{remedy}, and check the boxes and images of the last batches."

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the weights that the next iteration depends on."""
        state = super().state_dict()
        state.update(optimizer=self.optimizer.state_dict(), seed=self.seed, seconds=self.seconds)
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; also what Detectron2's trainers save."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds = state.get("seconds", 0.0)
        if self.grad_scaler.is_enabled() and state.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state["grad_scaler"])
