"""Branches side by side: each on a stream of its own on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layers.kernels.choice import log_once
from .branches import BranchState

__all__ = ["run_branches"]


def run_branches(function: Callable[..., BranchState], *arguments: Sequence, overlap: bool) -> list[BranchState]:
    """Calls a function for every branch, as ``map`` does.

    Args:
        function: what one branch does; it must not depend on what the others do.
        arguments: for every branch one value of each; some are tensors or states.
        overlap: let a GPU compute the branches at the same time, where it can: in inference. With gradients,
            the hooks of distributed training would meet them on several streams; compiled and exported code knows none.
    """
    calls = list(zip(*arguments, strict=True))
    device = next(value.device for value in calls[0] if isinstance(value, Tensor | BranchState))
    if not overlap or torch.is_grad_enabled() or torch.compiler.is_compiling() or device.type not in ("cuda", "cpu"):
        return [function(*call) for call in calls]
    if device.type == "cpu":
        log_once("overlap_branches=True: a CPU has no streams, so the branches run one after the other.")
    module = torch.get_device_module(device)  # that of the CPU has streams that do nothing
    here = module.current_stream(device)
    # The last branch, the largest model, stays here, and is the last to be queued: all others are under way by then.
    streams = [_stream(here, k) for k in range(len(calls) - 1)]
    # No memory is used again too early: inputs live until `here` waits for those who read them, and what a stream made
    # becomes free for its next branch, which waits for `here` first. So streams belong to `here`: branches that another
    # stream started would wait for that one alone.
    states = []
    try:
        for stream, call in zip(streams, calls, strict=False):
            stream.wait_stream(here)
            with module.stream(stream):
                states.append(function(*call))
        states.append(function(*calls[-1]))
    finally:
        for stream in streams:
            here.wait_stream(stream)
    return states


@functools.cache
def _stream(here: torch.Stream, index: int) -> torch.Stream:
    return torch.cuda.Stream(here.device) if isinstance(here, torch.cuda.Stream) else torch.cpu.Stream()
