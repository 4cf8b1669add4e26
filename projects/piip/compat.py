"""What Detectron2 0.6 and its main branch do differently, one small function each."""

from __future__ import annotations

import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm

__all__ = ["after_backward", "create_local_process_group"]


def after_backward(trainer: TrainerBase) -> None:
    """Calls the hooks between the backward pass and the update, which Detectron2 0.6 does not have."""
    if hasattr(trainer, "after_backward"):
        trainer.after_backward()


def create_local_process_group(size: int) -> None:
    """Makes the group of a machine's processes, ``size`` of them; all processes must call it together.

    Detectron2 0.6 makes it inside its own launcher only.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    for first in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= dist.get_rank() < first + size:
            comm._LOCAL_PROCESS_GROUP = group
