"""Whether a model is being exported, when operators of our own would tie the file to this package."""

from __future__ import annotations

import torch

__all__ = ["is_exporting"]


def is_exporting() -> bool:
    """True inside ``torch.export`` and ``torch.onnx.export``."""
    # Before torch 2.7 nothing tells the first one; it then keeps our operators.
    exporting = getattr(torch.compiler, "is_exporting", None)
    return torch.onnx.is_in_onnx_export() or (exporting is not None and exporting())
