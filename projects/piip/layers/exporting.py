"""Whether a model is being exported, when operators of our own would tie the file to this package."""

from __future__ import annotations

import torch

__all__ = ["is_exporting"]


def is_exporting() -> bool:
    """True inside ``torch.export`` and ``torch.onnx.export``."""
    # The flag, since torch.compile takes torch.compiler.is_exporting() for true. Before torch 2.7 there is none, and
    # torch.export keeps our operators.
    return torch.onnx.is_in_onnx_export() or getattr(torch.compiler, "_is_exporting_flag", False)
