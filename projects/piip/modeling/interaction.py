"""Cross-branch interactions: neighbouring branches look at each other's tokens.

Source: PIIP (arXiv:2501.07783), Sec. 3.3: gated cross-attention plus a gated convolutional feed-forward network, in
both directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.init import zeros_

from ..errors import ConfigError
from ..layers.deform_attn import DeformAttn
from .branches.base import check_rate
from .merging import he_normal_

__all__ = ["ConvFFN", "CrossAttention", "Injector", "InteractionUnit"]


class CrossAttention(nn.Module):
    """Dense multi-head cross-attention between two token grids, the costly alternative to :class:`DeformAttn`.

    Shape:
        query (B, Nq, dim), feat (B, Nk, feat_dim) -> (B, Nq, dim); the grids are not used.
    """

    def __init__(self, dim: int, feat_dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                f"cross-attention: num_heads={num_heads} does not divide the width {dim}; choose a divisor."
            )
        self.num_heads = num_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(feat_dim, dim, bias=False)
        self.wv = nn.Linear(feat_dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, feat: Tensor, query_grid: tuple[int, int], feat_grid: tuple[int, int]) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.wq(query), self.wk(feat), self.wv(feat))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ConvFFN(nn.Module):
    """Linear, depthwise 3x3 convolution on the token grid, GELU, linear.

    Shape:
        (B, h*w, dim) on grid_size (h, w) -> the same.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        x = self.fc1(x)
        # A permuted view is a channels-last map: no copy, and the fast path of depthwise convolutions. (Permuted first,
        # a batch of one would not be taken for channels last.)
        x = self.dwconv(x.unflatten(1, grid_size).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class Injector(nn.Module):
    """One direction of an interaction: brings the features of another branch into the tokens of this one.

    Both residual gates start at zero, so that an untrained PIIP equals its independent branches.

    Args:
        dim: width of the tokens that are updated.
        feat_dim: width of the other branch.
        num_heads: attention heads.
        num_points: sampling points per head of deformable attention.
        value_ratio: width of the values of deformable attention relative to ``dim``.
        ffn_ratio: hidden width of the feed-forward network relative to ``dim``; 0 for none.
        drop_path_rate: stochastic depth on the feed-forward residual (the attention residual has none).
        with_proj: project the other branch to ``dim`` first.
        with_norm: LayerNorm before attention and feed-forward network.
        attention: ``"deform"`` or ``"dense"``.

    Shape:
        query (B, Nq, dim), feat (B, Nk, feat_dim) -> (B, Nq, dim)
    """

    def __init__(
        self,
        dim: int,
        feat_dim: int,
        *,
        num_heads: int = 16,
        num_points: int = 4,
        value_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
        with_proj: bool = True,
        with_norm: bool = True,
        attention: str = "deform",
    ) -> None:
        super().__init__()
        if attention not in ("deform", "dense"):
            raise ConfigError(f"attention={attention!r} is unknown; use 'deform' or 'dense'.")
        check_rate("drop_path_rate", drop_path_rate)
        if ffn_ratio and int(dim * ffn_ratio) < 1:
            raise ConfigError(f"ffn_ratio={ffn_ratio} leaves no channel of {dim}; use a larger one, or 0 for no FFN.")

        def norm(width: int) -> nn.Module:
            return nn.LayerNorm(width, eps=1e-6) if with_norm else nn.Identity()

        self.proj = nn.Linear(feat_dim, dim) if with_proj else nn.Identity()
        if with_proj:
            feat_dim = dim
        self.query_norm, self.feat_norm = norm(dim), norm(feat_dim)
        if attention == "deform":
            self.attn: nn.Module = DeformAttn(dim, feat_dim, num_heads, num_points, value_ratio)
        else:
            self.attn = CrossAttention(dim, feat_dim, num_heads)
        self.gamma_attn = nn.Parameter(torch.zeros(dim))
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio)) if ffn_ratio else None
        if self.ffn is not None:
            self.ffn_norm = norm(dim)
            self.gamma_ffn = nn.Parameter(torch.zeros(dim))
            self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal linears, He-normal depthwise convolution; deformable attention keeps its own start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    zeros_(module.bias)
        he_normal_(self)
        if isinstance(self.attn, DeformAttn):
            self.attn.reset_parameters()

    def forward(self, query: Tensor, feat: Tensor, query_grid: tuple[int, int], feat_grid: tuple[int, int]) -> Tensor:
        feat = self.feat_norm(self.proj(feat))
        query = _add(query, self.gamma_attn, self.attn(self.query_norm(query), feat, query_grid, feat_grid))
        if self.ffn is not None:
            query = _add(query, self.gamma_ffn, self.drop_path(self.ffn(self.ffn_norm(query), query_grid)))
        return query


def _add(x: Tensor, gamma: Tensor | None, change: Tensor) -> Tensor:
    """``x + gamma * change`` in one pass over the tokens; without a gate, which fusing leaves none of, the sum."""
    return x + change if gamma is None else torch.addcmul(x, gamma, change)


class InteractionUnit(nn.Module):
    """Both directions between two neighbouring branches, each from the tokens before the other's update.

    Args:
        fine_dim: width of the branch with the higher resolution.
        coarse_dim: width of the branch with the lower resolution.
        injector: keyword arguments of both :class:`Injector`.

    Shape:
        fine (B, Nf, fine_dim), coarse (B, Nc, coarse_dim) -> the same two
    """

    def __init__(self, fine_dim: int, coarse_dim: int, **injector: object) -> None:
        super().__init__()
        self.to_coarse = Injector(coarse_dim, fine_dim, **injector)
        self.to_fine = Injector(fine_dim, coarse_dim, **injector)

    def forward(
        self, fine: Tensor, coarse: Tensor, fine_grid: tuple[int, int], coarse_grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        return (
            self.to_fine(fine, coarse, fine_grid, coarse_grid),
            self.to_coarse(coarse, fine, coarse_grid, fine_grid),
        )
