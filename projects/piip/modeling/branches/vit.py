"""Plain vision transformers (DeiT, DeiT III) as branches, with window or global attention per block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from ...layers.windows import window_partition, window_unpartition
from .base import Branch, BranchState, check_rate

__all__ = ["ViTBranch"]

_ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}


class ViTBranch(Branch):
    """A ViT made of timm blocks: patch embedding, absolute position embedding, pre-norm blocks; no final norm.

    Source: PIIP released models, DeiT kind: layer scale in every block, LayerNorm eps 1e-6, one constant
    stochastic-depth rate. The position embedding is resized bicubically to the grid at hand in every forward pass.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden width of the MLP relative to ``embed_dim``.
        patch_size: pixels per side of a patch.
        pretrain_img_size: pixels per side of the images that the position embedding was trained for.
        qkv_bias: bias of the joint query, key and value projection.
        window_size: tokens per side of the attention windows, 0 for global attention; one number for all blocks
            or one per block.
        pad_after_qkv: zero-pad queries, keys and values instead of the tokens where a window exceeds the grid. The
            released models pad the tokens, so that a padded key equals the bias.
        layer_scale_init: initial value of the residual scales.
        drop_path_rate: stochastic depth rate of every block.
        activation: ``"gelu"`` or ``"gelu_tanh"`` (what the released "fused" MLPs compute).
        weights: where the pretrained weights are, see :class:`Branch`.
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
        qkv_bias: bool = True,
        window_size: int | Sequence[int] = 0,
        pad_after_qkv: bool = False,
        layer_scale_init: float = 1.0,
        drop_path_rate: float = 0.0,
        activation: str = "gelu",
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        windows = [window_size] * depth if isinstance(window_size, int) else [int(w) for w in window_size]
        if len(windows) != depth or min(windows, default=0) < 0:
            raise ConfigError(
                f"window_size={windows} must be one number >= 0 or one per block, and depth is {depth}; "
                "0 stands for global attention."
            )
        check_rate("drop_path_rate", drop_path_rate)
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}; choose a divisor.")
        if pretrain_img_size % patch_size:
            raise ConfigError(
                f"pretrain_img_size={pretrain_img_size} is not a multiple of patch_size={patch_size}; "
                f"the nearest one is {round(pretrain_img_size / patch_size) * patch_size}."
            )
        if activation not in _ACTIVATIONS:
            raise ConfigError(f"activation={activation!r} is unknown; use one of {sorted(_ACTIVATIONS)}.")
        self.out_channels = [embed_dim] * depth
        self.strides = [patch_size] * depth
        self.embed_stride = patch_size
        self.window_sizes = windows
        self.pad_after_qkv = pad_after_qkv
        self.weights = weights
        self.use_act_checkpoint = use_act_checkpoint

        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=patch_size, embed_dim=embed_dim, flatten=False, strict_img_size=False
        )
        self.pos_grid = (pretrain_img_size // patch_size,) * 2
        self.pos_embed = nn.Parameter(torch.zeros(1, self.pos_grid[0] ** 2, embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                init_values=layer_scale_init,
                drop_path=drop_path_rate,
                act_layer=_ACTIVATIONS[activation],
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for _ in range(depth)
        )
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, image: Tensor) -> BranchState:
        if min(image.shape[2:]) < self.embed_stride:
            raise ConfigError(
                f"an image of {tuple(image.shape[2:])} pixels is smaller than one patch of {self.embed_stride}; "
                "use a larger input or resolution."
            )
        x = self.patch_embed.proj(image)
        grid = (x.shape[2], x.shape[3])
        return BranchState(x.flatten(2).transpose(1, 2) + self._position(grid).to(x.dtype), grid)

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding on another grid, (1, h*w, C)."""
        if grid == self.pos_grid:
            return self.pos_embed
        pos = self.pos_embed.float().transpose(1, 2).unflatten(2, self.pos_grid)
        pos = F.interpolate(pos, size=grid, mode="bicubic", align_corners=False)
        return pos.flatten(2).transpose(1, 2)

    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        x = state.tokens
        for index in range(start, stop):
            if self.use_act_checkpoint and self.training:
                x = checkpoint(self._block, x, index, state.grid_size, use_reentrant=False)
            else:
                x = self._block(x, index, state.grid_size)
        return state.replace(tokens=x)

    def _block(self, x: Tensor, index: int, grid: tuple[int, int]) -> Tensor:
        block, window = self.blocks[index], self.window_sizes[index]
        attended = self._attention(block.attn, block.norm1(x), grid, window)
        x = x + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def _attention(self, attn: nn.Module, x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
        if not window:
            return attn(x)
        if self.pad_after_qkv:
            qkv = window_partition(attn.qkv(x).unflatten(1, grid), window)
        else:
            qkv = attn.qkv(window_partition(x.unflatten(1, grid), window))
        qkv = qkv.flatten(1, 2).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        # Padded tokens are as good as gone: they need no output projection.
        return attn.proj(window_unpartition(x.unflatten(1, (window, window)), grid).flatten(1, 2))

    def layer_id(self, name: str) -> int | None:
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.use_act_checkpoint = enable
