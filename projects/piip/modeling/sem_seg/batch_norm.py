"""What batch norms ask of a training batch."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import ConfigError

__all__ = ["check_values"]


def check_values(norm: nn.Module | None, values: int, remedy: str) -> None:
    """Refuses a batch in which a batch norm sees a single value per channel, which has no variance of its own.

    Args:
        norm: of any kind, or none.
        values: per channel, in this process.
        remedy: what to do, to complete the message.

    Raises:
        ConfigError: for such a batch.
    """
    alone = not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1)
    if values == 1 and (type(norm) is nn.BatchNorm2d or (isinstance(norm, nn.SyncBatchNorm) and alone)):
        raise ConfigError(
            "The segmentation head's batch norms cannot learn from one value per channel, which a map of one pixel in "
            f"a batch of one image is; {remedy}, or model.sem_seg_head.norm=GN."
        )
