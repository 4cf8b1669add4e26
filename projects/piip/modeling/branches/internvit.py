"""The released models' InternViT kind: InternViT-6B, and the MAE, AugReg and DINOv2 transformers, as branches."""

from __future__ import annotations

from collections.abc import Sequence

from .transformer import linear_rates
from .vit import ViTBranch

__all__ = ["InternViTBranch"]


class InternViTBranch(ViTBranch):
    """A ViT whose stochastic depth grows linearly, and whose position embedding has an unused row for a class token.

    Source: PIIP released models. InternViT-6B (arXiv:2312.14238) has RMSNorm, normalised queries and keys, no qkv bias
    and layer scale; MAE, AugReg and DINOv2 have LayerNorm and the bias.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        drop_path_rate: stochastic depth rate of the last block; it starts with 0 in the first. Or one per block.
        vit: everything else that :class:`ViTBranch` takes.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    leading_positions = 1

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        drop_path_rate: float | Sequence[float] = 0.0,
        **vit: object,
    ) -> None:
        linear = isinstance(drop_path_rate, int | float)
        rates = linear_rates(drop_path_rate, depth) if linear else drop_path_rate
        super().__init__(embed_dim, depth, num_heads, drop_path_rate=rates, **vit)
