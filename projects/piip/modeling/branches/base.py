"""What a branch of the pyramid is: the protocol between PIIP and the model families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError

__all__ = ["Branch", "BranchState", "check_rate"]


def check_rate(name: str, rate: float) -> None:
    """Refuses a stochastic-depth rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ConfigError(f"{name}={rate} must be at least 0 and below 1.")


@dataclass(frozen=True)
class BranchState:
    """What travels through a branch.

    Attributes:
        tokens: features, (B, h*w, C), row by row.
        grid_size: ``(h, w)`` of the tokens.
        prefix: class or register tokens (B, P, C), which interactions and merging never see; None without any.
    """

    tokens: Tensor
    grid_size: tuple[int, int]
    prefix: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tokens.device

    def replace(self, **changes: Any) -> BranchState:
        """A copy with other values for the given attributes."""
        return replace(self, **changes)


class Branch(nn.Module, ABC):
    """One network of the pyramid, which can stop after any of its blocks.

    PIIP knows nothing of a family beyond this class. A family is one file beside this one that fills in the
    attributes and the two methods; width and grid may change between blocks.

    Attributes:
        out_channels: width after each block; its length is the number of blocks.
        strides: stride after each block with respect to the branch's own input image, in pixels.
        embed_stride: stride of the tokens that :meth:`embed` returns.
        rounds_up: whether every stride rounds sizes up; other networks drop rows and columns that make no whole one.
        num_prefix_tokens: class and register tokens in the state, a class token first.
        weights: where the pretrained weights are (a URI or file that :func:`piip.checkpoint.load_pretrained`
            understands), or None. Constructing a branch never loads them.
    """

    out_channels: list[int]
    strides: list[int]
    embed_stride: int
    rounds_up: bool = False
    num_prefix_tokens: int = 0
    weights: str | None = None

    @property
    def num_blocks(self) -> int:
        """How many blocks :meth:`run` can step through."""
        return len(self.out_channels)

    @abstractmethod
    def embed(self, image: Tensor) -> BranchState:
        """Turns an image (B, 3, H, W) into the state before block 0."""

    @abstractmethod
    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        """Runs blocks ``start`` (inclusive) to ``stop`` (exclusive)."""

    @abstractmethod
    def layer_id(self, name: str) -> int | None:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            name: the parameter's name inside this branch.

        Returns:
            0 for embeddings, i + 1 for block i, None where no decay applies.
        """

    def block_modules(self) -> list[nn.Module]:
        """The modules that :meth:`run` calls, each as a whole: nothing else may read their parameters.

        They are what is sharded one by one where a model is spread over several GPUs. Without any, the branch stays in
        one piece there.
        """
        return []

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
