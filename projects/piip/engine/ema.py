"""Moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["ModelEMA"]


class ModelEMA:
    """A second copy of a model that follows its weights: ``ema = decay * ema + (1 - decay) * weights``.

    It starts at the model's weights, and forgets them faster at first: at step t the decay is at most
    ``(1 + t) / (10 + t)``, as in TensorFlow's average, so that short trainings get an average worth having. Buffers
    that hold floating-point numbers (running statistics) are averaged too, others are copied. To evaluate the average,
    use :attr:`module`; the model itself is never touched.

    Args:
        model: on its final device, not wrapped for data-parallel training; or spread over several.
        decay: in (0, 1).
        module: what becomes the second copy, with whatever values; of a model that is spread, one that is spread alike.
            By default, it is made.
    """

    def __init__(self, model: nn.Module, decay: float, module: nn.Module | None = None):
        self.decay = decay
        self.module = (copy.deepcopy(model) if module is None else module).eval().requires_grad_(False)
        # Shared tensors appear once in each list, so they are averaged once.
        own = [*self.module.parameters(), *self.module.buffers()]
        followed = [*model.parameters(), *model.buffers()]
        pairs = list(zip(own, followed, strict=True))
        self._averaged = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._copied = [(a, b) for a, b in pairs if not a.is_floating_point()]
        with torch.no_grad():
            for a, b in pairs:
                _part(a).copy_(_part(b))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the model's present weights.

        Args:
            step: training steps done before this one.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._averaged:
            own, followed = ([_part(t) for t in side] for side in zip(*self._averaged, strict=True))
            torch._foreach_lerp_(own, followed, 1.0 - decay)
        for a, b in self._copied:
            a.copy_(b)


def _part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor. To be asked for every time: the memory may move."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
