"""What networks in stages share: steps over feature maps whose width and grid change on the way."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from .base import Branch, BranchState

__all__ = ["StagedBranch"]


class StagedBranch(Branch):
    """A network that works on feature maps, one step after the other.

    A family fills in the attributes of :class:`Branch`, and says what the embedding and a step compute. The state's
    tokens become a map before the first step of a run and tokens again after the last; both are views of one memory,
    channels last.

    Attributes:
        channels_last: whether the family's maps are (B, h, w, C) instead of (B, C, h, w).
        use_act_checkpoint: recompute the steps' activations in the backward pass.
    """

    channels_last = False
    use_act_checkpoint = False

    @abstractmethod
    def embed_map(self, image: Tensor) -> Tensor:
        """The map before step 0."""

    @abstractmethod
    def run_step(self, x: Tensor, index: int) -> Tensor:
        """Runs one step on a map."""

    def embed(self, image: Tensor) -> BranchState:
        if any(side < self.strides[-1] for side in image.shape[2:]):
            raise ConfigError(
                f"an image of {tuple(image.shape[2:])} pixels is smaller than the last stride of {self.strides[-1]}; "
                "use a larger input or resolution."
            )
        return self._state(self.embed_map(image))

    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        x = state.tokens.unflatten(1, state.grid_size)
        x = x if self.channels_last else x.permute(0, 3, 1, 2)
        return self._state(self.run_steps(x, start, stop))

    def run_steps(self, x: Tensor, start: int, stop: int, *context: object) -> Tensor:
        """Runs steps on a map; ``context`` is handed to every one of them."""
        for index in range(start, stop):
            if self.use_act_checkpoint and self.training:
                x = checkpoint(self.run_step, x, index, *context, use_reentrant=False)
            else:
                x = self.run_step(x, index, *context)
        return x

    def _state(self, x: Tensor) -> BranchState:
        x = x if self.channels_last else x.permute(0, 2, 3, 1)
        return BranchState(x.flatten(1, 2), (x.shape[1], x.shape[2]))

    def layer_id(self, name: str) -> int | None:
        return None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.use_act_checkpoint = enable
