"""Tensors that depend on nothing but a size, or a size and frozen parameters: made once, not in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Kept"]


class Kept(nn.Module):
    """The latest few such tensors of a function or a module, of which it is a part without parameters.

    What is made for a trace or while a CUDA graph is recorded is not kept, as it is no tensor for others. A tensor that
    a CUDA graph reads is kept for good. Copies and files of a module start anew.

    Args:
        limit: how many tensors are kept.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._latest: dict[Hashable, tuple[Tensor | None, int | None, Tensor]] = {}
        self._in_graphs: dict[int, Tensor] = {}

    def forward(
        self, key: Hashable, device: torch.device, make: Callable[[], Tensor], of: Tensor | None = None
    ) -> Tensor:
        """The tensor of this key, made by ``make`` if need be.

        Args:
            key: what it depends on, such as a size.
            device: where it is.
            make: gives it; what it gives learns nothing, unless it is made for a parameter that learns.
            of: the parameter that it is made of, if any; anew when that has changed, and always when it learns.
        """
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or (of is not None and (of.requires_grad or of.is_meta or of.is_inference())):
            return make()
        # Fake tensors are for their own mode alone, and their GPU need not be there.
        fake_mode = getattr(torch.empty(0, device="cpu"), "fake_mode", None)
        recording = fake_mode is None and _is_recording(device)
        version = None if of is None else of._version  # it changes with the values
        key = key, device, fake_mode
        made_of, made_at, tensor = self._latest.get(key, (None, None, None))
        if tensor is None or made_of is not of or made_at != version:
            # Used in training and inference, so never an inference tensor.
            with torch.inference_mode(False), torch.no_grad():
                tensor = make()
            if recording:  # its memory is the graph's
                return tensor
            self._latest.pop(key, None)
            while len(self._latest) >= self.limit:  # other threads do the same
                self._latest.pop(next(iter(list(self._latest)), None), None)
            self._latest[key] = of, version, tensor
        if recording:
            self._in_graphs[id(tensor)] = tensor
        return tensor

    def _apply(self, *args: Any, **kwargs: Any) -> Kept:
        self._latest.clear()  # parameters move, or change their type
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_latest": {}, "_in_graphs": {}}


def _is_recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
