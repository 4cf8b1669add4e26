"""Plain vision transformers of the DeiT kind (DeiT, DeiT III) as branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers.kept import Kept
from .base import BranchState, check_rate
from .transformer import ACTIVATIONS, TransformerBranch, init_linears, position_grid, resample_positions

__all__ = ["ViTBranch"]

# How many sizes of a frozen position embedding are remembered.
_KEPT_SIZES = 16
_NORMS = {"LN": nn.LayerNorm, "RMS": nn.RMSNorm}


class ViTBranch(TransformerBranch):
    """A ViT made of timm blocks: patch embedding, absolute position embedding, pre-norm blocks; no final norm.

    Source: PIIP released models, DeiT kind: layer scale in every block, normalisation eps 1e-6, one constant
    stochastic-depth rate. The position embedding is resized bicubically to the grid at hand.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        mlp_ratio: hidden width of the MLP relative to ``embed_dim``.
        patch_size: pixels per side of a patch.
        pretrain_img_size: pixels per side of the images that the position embedding was trained for; its grid has
            one position per whole patch of ``patch_size``, also where the training had other patches.
        qkv_bias: bias of the joint query, key and value projection.
        norm: ``"LN"`` (LayerNorm) or ``"RMS"`` (RMSNorm).
        qk_norm: normalise queries and keys over all heads together.
        window_size: tokens per side of the attention windows, 0 for global attention; one number for all blocks
            or one per block.
        pad_after_qkv: zero-pad queries, keys and values instead of the tokens where a window exceeds the grid. The
            released models pad the tokens, so that a padded key equals the bias.
        layer_scale_init: initial value of the residual scales; None for none.
        class_token: let a class token take part in the attention, which must be global then. It has no position, as
            in the released classifiers.
        drop_path_rate: stochastic depth rate of every block, or one per block.
        activation: ``"gelu"`` or ``"gelu_tanh"`` (what the released "fused" MLPs compute).
        weights: where the pretrained weights are, see :class:`~.base.Branch`.
        use_act_checkpoint: recompute block activations in the backward pass.

    Shape:
        embed: (B, 3, H, W) -> tokens (B, h*w, C) with h = H // patch_size, w = W // patch_size; up to
        ``patch_size - 1`` trailing pixels are dropped, as in the released models.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    # Rows of the position embedding before those of the grid, which are never used.
    leading_positions = 0

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
        norm: str = "LN",
        qk_norm: bool = False,
        window_size: int | Sequence[int] = 0,
        pad_after_qkv: bool = False,
        layer_scale_init: float | None = 1.0,
        class_token: bool = False,
        drop_path_rate: float | Sequence[float] = 0.0,
        activation: str = "gelu",
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__(embed_dim, depth, num_heads, patch_size, window_size, weights, use_act_checkpoint)
        rates = [drop_path_rate] * depth if isinstance(drop_path_rate, int | float) else list(drop_path_rate)
        if len(rates) != depth:
            raise ConfigError(f"drop_path_rate has {len(rates)} values for {depth} blocks; give one, or one per block.")
        for rate in rates:
            check_rate("drop_path_rate", rate)
        for name, value, known in (("activation", activation, ACTIVATIONS), ("norm", norm, _NORMS)):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is unknown; use one of {sorted(known)}.")
        if class_token and any(self.window_sizes):
            raise ConfigError(
                f"class_token=True needs global attention, and window_size is {window_size}; set it to 0, or leave "
                "out class_token."
            )
        self.pad_after_qkv = pad_after_qkv
        self.patch_embed = self.make_patch_embed()
        self.pos_grid = position_grid(pretrain_img_size, patch_size)
        rows = self.leading_positions + self.pos_grid[0] ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim))
        self.kept = Kept(_KEPT_SIZES)
        self.num_prefix_tokens = int(class_token)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            trunc_normal_(self.cls_token, std=0.02)
        norm_layer = partial(_NORMS[norm], eps=1e-6)
        self.blocks = self.make_blocks(
            rates,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            init_values=layer_scale_init,
            act_layer=ACTIVATIONS[activation],
            norm_layer=norm_layer,
        )
        if qk_norm:
            # timm's own option normalises every head by itself.
            for block in self.blocks:
                block.attn.q_norm, block.attn.k_norm = norm_layer(embed_dim), norm_layer(embed_dim)
        trunc_normal_(self.pos_embed, std=0.02)
        init_linears(self.blocks)

    def positions(self, grid_size: tuple[int, int]) -> Tensor:
        """The position embedding on a grid, (1, h*w, C); of a frozen one, as after fusing, the latest are kept."""
        pos = self.pos_embed

        def resampled() -> Tensor:
            return resample_positions(pos[:, self.leading_positions :], self.pos_grid, grid_size)

        return self.kept(grid_size, pos.device, resampled, of=pos)

    def embed(self, image: Tensor) -> BranchState:
        x, grid = self.patches(image)
        pos = self.positions(grid)
        prefix = self.cls_token.to(x.dtype).expand(len(x), -1, -1) if self.num_prefix_tokens else None
        return BranchState(x + pos.to(x.dtype), grid, prefix)
