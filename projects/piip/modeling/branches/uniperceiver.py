"""Uni-Perceiver transformers as branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .base import BranchState
from .transformer import TransformerBranch, init_linears, linear_rates, position_grid, resample_positions

__all__ = ["UniPerceiverBranch"]

# Video frames that Uni-Perceiver tells apart; an image is the first.
_FRAMES = 8


class UniPerceiverBranch(TransformerBranch):
    """The transformer of Uni-Perceiver with its embedding for images.

    Source: PIIP released models; Uni-Perceiver (arXiv:2112.01522). Patches get a position of their place and the first
    of eight positions in time, then a LayerNorm. The place's is resized bicubically in every forward pass.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden width of the MLP relative to ``embed_dim``.
        patch_size: pixels per side of a patch.
        pretrain_img_size: pixels per side of the images that the positions were trained for.
        window_size: tokens per side of the attention windows, 0 for global attention; one number for all blocks
            or one per block.
        layer_scale_init: initial value of the residual scales. The released models start with zero, where the first
            step of a training without pretrained weights would reach nothing but the scales.
        drop_path_rate: stochastic depth rate of the last block; it starts with 0 in the first.
        weights: where the pretrained weights are, see :class:`~.base.Branch`.
        use_act_checkpoint: recompute block activations in the backward pass.

    Shape:
        embed: (B, 3, H, W) -> tokens (B, h*w, C) with h = H // patch_size, w = W // patch_size; up to
        ``patch_size - 1`` trailing pixels are dropped, as in the released models.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        patch_size: int = 16,
        pretrain_img_size: int = 224,
        window_size: int | Sequence[int] = 0,
        layer_scale_init: float = 1e-6,
        drop_path_rate: float = 0.0,
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__(embed_dim, depth, num_heads, patch_size, window_size, weights, use_act_checkpoint)
        norm_layer = partial(nn.LayerNorm, eps=1e-5)
        self.patch_embed = self.make_patch_embed()
        self.pos_grid = position_grid(pretrain_img_size, patch_size)
        self.spatial_pos_embed = nn.Parameter(torch.zeros(self.pos_grid[0] ** 2, embed_dim))
        self.temporal_pos_embed = nn.Parameter(torch.zeros(_FRAMES, embed_dim))
        self.embed_norm = norm_layer(embed_dim)
        self.blocks = self.make_blocks(
            linear_rates(drop_path_rate, depth),
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            init_values=layer_scale_init,
            norm_layer=norm_layer,
        )
        trunc_normal_(self.spatial_pos_embed, std=0.02)
        trunc_normal_(self.temporal_pos_embed, std=0.02)
        init_linears(self.blocks)

    def embed(self, image: Tensor) -> BranchState:
        x, grid = self.patches(image)
        pos = resample_positions(self.spatial_pos_embed.unsqueeze(0), self.pos_grid, grid) + self.temporal_pos_embed[0]
        return BranchState(self.embed_norm(x + pos.to(x.dtype)), grid)
