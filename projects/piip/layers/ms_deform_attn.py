"""Deformable attention over several levels of a feature pyramid, for detectors of the DETR family.

Source: Deformable DETR (arXiv:2010.04159), Eq. 3 and A.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .deform_attn import at_least_float32, cell_size, linear_float32, starting_offsets
from .sampling import deform_attn

__all__ = ["MSDeformAttn"]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: every query looks at a few places in every level.

    Places are relative to a reference of the query: around a point, in cells of the level; in a box, in units of half
    its size divided by the number of points. Places, weights and sums are in float32 whatever the autocast dtype.

    Args:
        dim: width of queries and features.
        num_heads: attention heads; must divide ``dim``.
        num_levels: levels of the pyramid.
        num_points: samples per head and level.

    Shape:
        query (B, Q, dim), reference (B, Q, num_levels, 2) points ``(x, y)`` or (B, Q, num_levels, 4) boxes
        ``(cx, cy, w, h)`` in units of each level's width and height, feat (B, sum h*w, dim), padding (B, sum h*w) bool,
        True where a cell holds no image -> (B, Q, dim)

    Raises:
        ConfigError: when the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"deformable attention: num_heads={num_heads} must divide the width {dim}.")
        for name, number in (("num_levels", num_levels), ("num_points", num_points)):
            if number < 1:
                raise ConfigError(f"deformable attention: {name}={number} must be at least 1.")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as :func:`~piip.layers.deform_attn.starting_offsets`, with equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            offsets = starting_offsets(self.num_heads, self.num_levels, self.num_points)
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for proj in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        feat: Tensor,
        grids: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        b, n, _ = query.shape
        m, levels, p = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(feat)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        # Meta tensors, on which models are counted, know no autocast.
        with nullcontext() if query.is_meta else torch.autocast(query.device.type, enabled=False):
            q = at_least_float32(query)
            offsets = linear_float32(self.sampling_offsets, q).view(b, n, m, levels, p, 2)
            weights = linear_float32(self.attention_weights, q).view(b, n, m, levels * p).softmax(dim=-1)
            reference = at_least_float32(reference)[:, :, None, :, None]
            if reference.shape[-1] == 2:
                unit = torch.stack([cell_size(tuple(grid), query.device) for grid in grids])[:, None]
            else:
                unit = reference[..., 2:] * (0.5 / p)
            locations = reference[..., :2] + offsets * unit
            out = deform_attn(value.unflatten(-1, (m, -1)), grids, locations, weights.view(b, n, m, levels, p))
        return self.output_proj(out)
