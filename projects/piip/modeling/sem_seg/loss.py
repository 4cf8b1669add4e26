"""What segmentation heads learn from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pixel_loss"]


def pixel_loss(logits: Tensor, targets: Tensor, ignore_value: int, align_corners: bool = False) -> Tensor:
    """Cross-entropy over the labelled pixels of a batch, in float32; zero where no pixel has a label.

    Args:
        logits: at any resolution; resized to that of the labels.
        targets: class numbers, or ``ignore_value``.
        ignore_value: label of pixels that do not count.
        align_corners: of the resizing.

    Shape:
        (B, K, h, w), (B, H, W) -> ()
    """
    logits = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = F.cross_entropy(logits, targets, ignore_index=ignore_value, reduction="sum")
    return total / (targets != ignore_value).sum().clamp(min=1)
