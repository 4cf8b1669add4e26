"""Memory formats of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense", "dense_like", "is_channels_last"]


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of ``x`` come last in memory; what can be seen both ways counts as contiguous."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` without gaps: channels-last if ``like`` (``x`` itself by default) is, else contiguous."""
    return x.contiguous(memory_format=_memory_format(x if like is None else like))


def dense_like(x: Tensor) -> Tensor:
    """A new tensor in the memory format of :func:`dense`."""
    return torch.empty_like(x, memory_format=_memory_format(x))


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
