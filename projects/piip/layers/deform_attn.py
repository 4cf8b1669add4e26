"""Deformable attention between two token grids: the module around the operator.

Source: Deformable DETR (arXiv:2010.04159), Eq. 2-3; PIIP (arXiv:2501.07783) uses one level, 4 points per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from ..errors import ConfigError
from .exporting import is_exporting
from .kept import Kept
from .kernels import deform_attn_eager
from .kernels.choice import choose
from .sampling import deform_attn

__all__ = ["DeformAttn", "attend_joined", "reference_points"]

# There are two or three grids per size of a batch.
_points, _sizes = Kept(64), Kept(64)


def reference_points(grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """Centres of the cells of a grid, ``(x, y)`` in units of its width and height, row by row.

    Kept: every interaction of every forward pass asks for the same few.

    Shape:
        (h * w, 2), float32.
    """

    def make() -> Tensor:
        h, w = grid_size
        y = (torch.arange(h, dtype=torch.float32, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=torch.float32, device=device) + 0.5) / w
        return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1).view(h * w, 2)

    return _points(grid_size, device, make)


def cell_size(grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """Width and height of a cell in units of its grid, (2,) float32; nothing is copied to the GPU, which would wait."""

    def make() -> Tensor:
        sides = [torch.full((), 1 / side, dtype=torch.float32, device=device) for side in reversed(grid_size)]
        return torch.stack(sides)

    return _sizes(grid_size, device, make)


def starting_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Where the heads look before training: in evenly spread directions, point p at distance p + 1.

    On the CPU, whatever the default device: a PIIP asks a hundred times, and the meta device takes 10 ms each time.

    Source: Deformable DETR (arXiv:2010.04159), A.4.

    Shape:
        (num_heads, num_levels, num_points, 2), float32, in cells.
    """
    with torch.device("cpu"):
        angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
        steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
    rays = rays / rays.abs().amax(dim=-1, keepdim=True)
    return (rays[:, None, None] * steps[:, None]).expand(num_heads, num_levels, num_points, 2)


def _softmax_of_few(x: Tensor) -> Tensor:
    """Softmax over a short last dimension, for which torch takes more than twice as long on a CPU as over the first."""
    return x.movedim(-1, 0).contiguous().softmax(dim=0).movedim(0, -1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32 or float64, also of a half-precision model."""
    return F.linear(x, at_least_float32(layer.weight), at_least_float32(layer.bias))


def _places(
    offsets: Tensor, logits: Tensor, query_grid: Sequence[int], feat_grid: Sequence[int], num_heads: int
) -> tuple[Tensor, Tensor]:
    """Where the queries of one grid look in another, (B, Nq, heads, 1, points, 2), and the weights."""
    b, n, count = logits.shape
    shape = b, n, num_heads, 1, count // num_heads
    offsets, logits = offsets.view(*shape, 2), logits.view(shape)
    centres = reference_points(tuple(query_grid), offsets.device).view(1, n, 1, 1, 1, 2)
    locations = torch.addcmul(centres, offsets, cell_size(tuple(feat_grid), offsets.device))
    few = logits.is_cpu and not is_exporting()
    return locations, _softmax_of_few(logits) if few else logits.softmax(dim=-1)


@torch.library.custom_op("piip::deform_attn_joined", mutates_args=())
def attend_joined(value: Tensor, samples: Tensor, query_grid: Sequence[int], feat_grid: Sequence[int]) -> Tensor:
    """Deformable attention of all cells of one grid to another, with all that follows the projections; no gradients.

    Shape:
        value (B, Nk, M, D), samples (B, Nq, M * points * 3): first the offsets of all heads and points in cells, ``x``
        and ``y``, then the logits of their weights; float32, or float64 for values of float64 -> (B, Nq, M * D)

    Raises:
        ConfigError: when the tensors and grids do not fit each other.
    """
    heads, points = value.shape[2], samples.shape[2] // (3 * value.shape[2])
    # Kernels believe it, and would read other memory.
    if (len(value), value.shape[1], *samples.shape[1:]) != (
        len(samples),
        math.prod(feat_grid),
        math.prod(query_grid),
        3 * heads * points,
    ):
        raise ConfigError(
            f"deformable attention: value {tuple(value.shape)} and samples {tuple(samples.shape)} must agree in batch "
            f"and heads, and have the cells of the grids {tuple(feat_grid)} and {tuple(query_grid)}."
        )
    kernels = choose("deform_attn", value, samples, samples, tuple(feat_grid)) if samples.numel() else deform_attn_eager
    if hasattr(kernels, "forward_joined"):
        return kernels.forward_joined(value, samples, query_grid, feat_grid)
    parts = samples.split([2 * heads * points, heads * points], dim=-1)
    return kernels.forward(value, *_places(*parts, query_grid, feat_grid, heads), feat_grid)


@attend_joined.register_fake
def _(value: Tensor, samples: Tensor, query_grid: Sequence[int], feat_grid: Sequence[int]) -> Tensor:
    return value.new_empty(value.shape[0], samples.shape[1], value.shape[2] * value.shape[3])


# As of deform_attn.
@register_flop_formula(torch.ops.piip.deform_attn_joined)
def _flops(value_shape: torch.Size, samples_shape: torch.Size, *args, **kwargs) -> int:
    return 10 * math.prod(samples_shape) // 3 * value_shape[-1]


class DeformAttn(nn.Module):
    """Single-level multi-head deformable attention from one token grid to another.

    Each query looks at ``num_points`` places per head around its own relative position in the other grid; offsets
    are in units of that grid's cells. Places, weights and sums are in float32 whatever the autocast dtype, as in the
    released code: a bfloat16 coordinate resolves only 0.4 px on a 98-cell grid. Values stay in that dtype.

    Args:
        dim: width of the queries.
        feat_dim: width of the features that are looked at.
        num_heads: attention heads; must divide ``value_ratio * dim``.
        num_points: samples per head, >= 1.
        value_ratio: width of the projected values relative to ``dim``.

    Shape:
        query (B, Nq, dim) on query_grid, feat (B, Nk, feat_dim) on feat_grid -> (B, Nq, dim)

    Raises:
        ConfigError: when the heads do not divide the width.
    """

    def __init__(
        self, dim: int, feat_dim: int, num_heads: int = 16, num_points: int = 4, value_ratio: float = 0.5
    ) -> None:
        super().__init__()
        value_dim = int(value_ratio * dim)
        if num_heads < 1 or dim % num_heads or value_dim % num_heads or value_dim < num_heads:
            raise ConfigError(
                f"deformable attention: num_heads={num_heads} must divide the width {dim} and the value width "
                f"{value_dim} (= value_ratio {value_ratio} of it); choose another num_heads or value_ratio."
            )
        if num_points < 1:
            raise ConfigError(f"deformable attention: num_points={num_points} must be at least 1.")
        self.num_heads, self.num_points = num_heads, num_points
        self.joined: nn.Linear | None = None
        self.sampling_offsets = nn.Linear(dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_points)
        self.value_proj = nn.Linear(feat_dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as :func:`starting_offsets`, with equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(starting_offsets(self.num_heads, 1, self.num_points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for proj in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def join_projections(self) -> None:
        """Makes one product of the queries' two, for inference; its parameters are float32 also of half precision."""
        parts, self.joined = (self.sampling_offsets, self.attention_weights), nn.Linear(1, 1, device="meta")
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(part, name) for part in parts])
            setattr(self.joined, name, nn.Parameter(at_least_float32(joined), requires_grad=False))
        self.joined.out_features, self.joined.in_features = self.joined.weight.shape
        del self.sampling_offsets, self.attention_weights

    def _samples(self, query: Tensor) -> Sequence[Tensor]:
        """Offsets and weights before the softmax, (B, Nq, heads * points * 2) and (B, Nq, heads * points)."""
        if self.joined is None:
            return [linear_float32(layer, query) for layer in (self.sampling_offsets, self.attention_weights)]
        count = self.num_heads * self.num_points
        return linear_float32(self.joined, query).split([2 * count, count], dim=-1)

    def forward(self, query: Tensor, feat: Tensor, query_grid: tuple[int, int], feat_grid: tuple[int, int]) -> Tensor:
        if torch.jit.is_tracing():  # where sides are tensors, and a list of them is no argument of an operator
            query_grid, feat_grid = (tuple(map(int, grid)) for grid in (query_grid, feat_grid))
        value = self.value_proj(feat).unflatten(-1, (self.num_heads, -1))
        # Meta tensors, on which models are counted, know no autocast, and exported graphs hold no part without it.
        plain = query.is_meta or is_exporting()
        with nullcontext() if plain else torch.autocast(query.device.type, enabled=False):
            q = at_least_float32(query)
            if self.joined is not None and not plain and not torch.is_grad_enabled():
                out = attend_joined(value, linear_float32(self.joined, q), query_grid, feat_grid)
            else:
                places = _places(*self._samples(q), query_grid, feat_grid, self.num_heads)
                out = deform_attn(value, [feat_grid], *places)
        return self.output_proj(out)
