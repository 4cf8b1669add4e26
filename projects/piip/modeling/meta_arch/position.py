"""Sine embeddings of places: of the cells of a map, and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["box_position", "map_position"]


def _waves(x: Tensor, num_feats: int, temperature: float) -> Tensor:
    """Sine and cosine of ``x`` (in radians) in turn, at wavelengths that grow up to ``temperature`` times.

    Shape:
        (...) -> (..., num_feats)
    """
    exponents = torch.arange(num_feats // 2, dtype=torch.float32, device=x.device) * (2 / num_feats)
    angles = x[..., None] / temperature**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def map_position(padding: Tensor, num_feats: int, temperature: float = 20.0) -> Tensor:
    """Embeds where every cell lies in the part of its map that holds the image.

    Source: DETR (arXiv:2005.12872), A.4; DINO (arXiv:2203.03605) for the temperature of 20.

    Args:
        padding: True where a cell holds no image.
        num_feats: features per axis, even.
        temperature: longest wavelength, in units of the image's side.

    Shape:
        padding (B, h, w) -> (B, h, w, 2 * num_feats), the features of y before those of x.
    """
    inside = (~padding).float()
    waves = []
    for axis in (1, 2):
        count = inside.cumsum(axis)
        share = count / (count.amax(axis, keepdim=True) + 1e-6)  # up to 1 at the last cell of the image
        waves.append(_waves(share * (2 * math.pi), num_feats, temperature))
    return torch.cat(waves, dim=-1)


def box_position(boxes: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Embeds boxes in units of the image.

    Source: DAB-DETR (arXiv:2201.12329), Eq. 4.

    Shape:
        boxes (..., 4) as ``(cx, cy, w, h)`` -> (..., 4 * num_feats), in the order y, x, w, h.
    """
    cx, cy, w, h = boxes.unbind(-1)
    return torch.cat([_waves(x * (2 * math.pi), num_feats, temperature) for x in (cy, cx, w, h)], dim=-1)
