"""BEiT transformers, whose attention knows positions by a relative bias alone, as branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers.attention import grid_attention
from ...layers.kept import Kept
from .base import BranchState
from .transformer import TransformerBranch, init_linears, linear_rates, position_grid

__all__ = ["BEiTBranch", "relative_position_index"]


class BEiTBranch(TransformerBranch):
    """A BEiT: patch embedding without positions, and blocks whose attention adds a learned bias per offset and head.

    Source: PIIP released models; BEiT (arXiv:2106.08254), BEiT v2 (arXiv:2208.06366). Every block has its own table of
    biases, made for the side of its window: a block with global attention works on one grid only.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden width of the MLP relative to ``embed_dim``.
        patch_size: pixels per side of a patch.
        pretrain_img_size: pixels per side of the images that blocks with global attention work on.
        window_size: tokens per side of the attention windows, 0 for global attention; one number for all blocks
            or one per block.
        layer_scale_init: initial value of the residual scales.
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
        side = position_grid(pretrain_img_size, patch_size)[0]
        self.patch_embed = self.make_patch_embed()
        self.blocks = self.make_blocks(
            linear_rates(drop_path_rate, depth),
            mlp_ratio=mlp_ratio,
            init_values=layer_scale_init,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        for block, window in zip(self.blocks, self.window_sizes, strict=True):
            block.attn = _Attention(embed_dim, num_heads, window or side)
        init_linears(self.blocks)

    def embed(self, image: Tensor) -> BranchState:
        return BranchState(*self.patches(image))

    def attend(self, attn: nn.Module, x: Tensor, window_size: int, grid_size: tuple[int, int]) -> Tensor:
        if not window_size and grid_size != (attn.side, attn.side):
            raise ConfigError(
                f"a block of a BEiT branch has global attention with positions for {attn.side} x {attn.side} "
                f"tokens, and the grid is {grid_size[0]} x {grid_size[1]}; set window_size, or pretrain_img_size to "
                "the size of the branch's images."
            )
        return grid_attention(x, grid_size, window_size, attn.project, self.num_heads, attn.bias())


class _Attention(nn.Module):
    """The parameters of BEiT's attention on ``side`` x ``side`` tokens, by their released names."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        self.kept = Kept(1)
        self.proj = nn.Linear(dim, dim)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        # A bias of the keys would move all logits of a query alike, which softmax does not see.
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return q + self.q_bias.to(q.dtype), k, v + self.v_bias.to(v.dtype)

    def bias(self) -> Tensor:
        """What is added to the logits, (1, heads, side*side queries, side*side keys); kept of a frozen table."""
        table = self.relative_position_bias_table

        def laid_out() -> Tensor:
            # Computed anew, as a buffer would be lost on the way from the meta device.
            index = relative_position_index(self.side, table.device)
            # The fast kernels take masks of two or four dimensions alone.
            return table.T.index_select(1, index.flatten()).view(1, -1, *index.shape)

        return self.kept((), table.device, laid_out, of=table)


def relative_position_index(side: int, device: torch.device | str = "cpu") -> Tensor:
    """Which row of a table of relative position biases belongs to every pair of tokens.

    The rows are the offsets from key to query, -(side - 1) to side - 1 in either direction, row by row. Released
    checkpoints store this index beside the table.

    Shape:
        (side*side queries, side*side keys), int64
    """
    place = torch.arange(side, device=device)
    offset = place[:, None] - place[None, :] + side - 1
    index = offset[:, None, :, None] * (2 * side - 1) + offset[None, :, None, :]
    return index.reshape(side**2, side**2)
