"""What the plain transformers share: equal blocks on one grid, windows per block, recomputation of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from ...layers.attention import grid_attention
from ...layers.windows import window_partition, window_unpartition, windows_in_grid
from .base import Branch, BranchState, check_rate

__all__ = ["ACTIVATIONS", "TransformerBranch", "init_linears", "linear_rates", "position_grid", "resample_positions"]

# "gelu_tanh" is what the released "fused" MLPs compute.
ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}


class _GridBlock(Block):
    """timm's block around an attention that is told from outside.

    Shape:
        x (B, N, C) -> the same; ``attend`` takes the attention module and normalised tokens. Where it gives them in
        another order, ``place`` makes a view (B, ..., C) of them in the order of ``x``.
    """

    def forward(
        self,
        x: Tensor,
        attend: Callable[[nn.Module, Tensor], Tensor],
        place: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        attended = self.ls1(self.attn.proj(attend(self.attn, self.norm1(x))))
        if place is None:
            x = x + self.drop_path1(attended)
        else:
            attended = place(attended)
            x = (x.view_as(attended) + self.drop_path1(attended)).flatten(1, -2)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TransformerBranch(Branch):
    """A transformer with ``blocks`` that all have one width and work on the grid of the patches.

    A family makes its positions and, with :meth:`make_patch_embed` and :meth:`make_blocks`, the rest. Blocks have the
    parts of timm's, which run here around attention in windows; what differs in a family's attention goes into
    :meth:`attend`.

    Args:
        embed_dim: width C.
        depth: number of blocks.
        num_heads: attention heads; must divide ``embed_dim``.
        patch_size: pixels per side of a patch.
        window_size: tokens per side of the attention windows, 0 for global attention; one number for all blocks
            or one per block.
        weights: where the pretrained weights are, see :class:`Branch`.
        use_act_checkpoint: recompute block activations in the backward pass.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    patch_embed: PatchEmbed
    blocks: nn.ModuleList
    pad_after_qkv = False

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        window_size: int | Sequence[int] = 0,
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"depth={depth} must be at least 1.")
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}; choose a divisor.")
        windows = [window_size] * depth if isinstance(window_size, int) else [int(w) for w in window_size]
        if len(windows) != depth or min(windows) < 0:
            raise ConfigError(
                f"window_size={windows} must be one number >= 0 or one per block, and depth is {depth}; "
                "0 stands for global attention."
            )
        self.out_channels = [embed_dim] * depth
        self.strides = [patch_size] * depth
        self.embed_stride = patch_size
        self.num_heads = num_heads
        self.window_sizes = windows
        self.weights = weights
        self.use_act_checkpoint = use_act_checkpoint

    def make_patch_embed(self) -> PatchEmbed:
        """The projection of patches, for images of any size."""
        return PatchEmbed(
            img_size=None,
            patch_size=self.embed_stride,
            embed_dim=self.out_channels[0],
            flatten=False,
            strict_img_size=False,
        )

    def make_blocks(self, rates: Sequence[float], **block: object) -> nn.ModuleList:
        """timm's blocks with a stochastic-depth rate for each and whatever else timm's ``Block`` takes."""
        width = self.out_channels[0]
        return nn.ModuleList(_GridBlock(width, self.num_heads, drop_path=rate, **block) for rate in rates)

    def patches(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The projected patches of an image as tokens (B, h*w, C), and their grid (h, w).

        Raises:
            ConfigError: for an image without a single whole patch.
        """
        if any(side < self.embed_stride for side in image.shape[2:]):
            raise ConfigError(
                f"an image of {tuple(image.shape[2:])} pixels is smaller than one patch of {self.embed_stride}; "
                "use a larger input or resolution."
            )
        x = self.patch_embed.proj(image)
        # Sums take on the layout of their first term, so all blocks would work on tokens that lie channel by channel.
        return x.flatten(2).transpose(1, 2).contiguous(), (x.shape[2], x.shape[3])

    def run_block(self, x: Tensor, index: int, grid_size: tuple[int, int], window_size: int, cut: bool) -> Tensor:
        """Runs one block on tokens (B, N, C), row by row or, if they are ``cut``, window by window."""
        block = self.blocks[index]
        if cut:
            return block(x, partial(self._attend_cut, window_size=window_size))
        if _fit(window_size, grid_size):
            # The sum that follows reads windows in the order of the grid, without a copy.
            attend = partial(self._attend_windows, window_size=window_size, grid_size=grid_size)
            return block(x, attend, partial(windows_in_grid, grid_size=grid_size))
        return block(x, partial(self.attend, window_size=window_size, grid_size=grid_size))

    def attend(self, attn: nn.Module, x: Tensor, window_size: int, grid_size: tuple[int, int]) -> Tensor:
        """The attention of a block up to its output projection, on normalised tokens (B, N, C)."""

        def project(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = attn.qkv(tokens).chunk(3, dim=-1)
            return attn.q_norm(q), attn.k_norm(k), v

        # Padded tokens are as good as gone: they need no output projection.
        return grid_attention(x, grid_size, window_size, project, self.num_heads, None, self.pad_after_qkv)

    def _attend_cut(self, attn: nn.Module, x: Tensor, window_size: int) -> Tensor:
        windows = x.unflatten(1, (-1, window_size**2)).flatten(0, 1)
        return self.attend(attn, windows, 0, (window_size, window_size)).view_as(x)

    def _attend_windows(self, attn: nn.Module, x: Tensor, window_size: int, grid_size: tuple[int, int]) -> Tensor:
        windows = window_partition(x.unflatten(1, grid_size), window_size)
        return self.attend(attn, windows.flatten(1, 2), 0, (window_size, window_size)).view_as(windows)

    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        x = state.tokens if state.prefix is None else torch.cat([state.prefix, state.tokens], dim=1)
        for window, indexes in groupby(range(start, stop), key=self.window_sizes.__getitem__):
            x = self._run_blocks(x, list(indexes), state.grid_size, window)
        if state.prefix is None:
            return state.replace(tokens=x)
        count = state.prefix.shape[1]
        return state.replace(tokens=x[:, count:], prefix=x[:, :count])

    def _run_blocks(self, x: Tensor, indexes: Sequence[int], grid_size: tuple[int, int], window: int) -> Tensor:
        """Runs blocks whose windows are the same; tokens stay in these windows from block to block if they can."""
        cut = len(indexes) > 1 and _fit(window, grid_size)
        if cut:
            x = window_partition(x.unflatten(1, grid_size), window).view_as(x)
        for index in indexes:
            if self.use_act_checkpoint and self.training:
                x = checkpoint(self.run_block, x, index, grid_size, window, cut, use_reentrant=False)
            else:
                x = self.run_block(x, index, grid_size, window, cut)
        return window_unpartition(x.view(-1, window, window, x.shape[-1]), grid_size).flatten(1, 2) if cut else x

    def block_modules(self) -> list[nn.Module]:
        return list(self.blocks)

    def layer_id(self, name: str) -> int | None:
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.use_act_checkpoint = enable


def _fit(window: int, grid_size: tuple[int, int]) -> bool:
    """Whether windows cover a grid without padding, which every block makes anew.

    Never in compiled code, which puts the copies into what is beside them, and has no use for a condition.
    """
    return bool(window) and not torch.compiler.is_compiling() and not any(side % window for side in grid_size)


def position_grid(pretrain_img_size: int, patch_size: int) -> tuple[int, int]:
    """The grid of the positions of a model for images of ``pretrain_img_size`` pixels per side.

    Raises:
        ConfigError: when the images are smaller than a patch.
    """
    if pretrain_img_size < patch_size:
        raise ConfigError(f"pretrain_img_size={pretrain_img_size} must be at least patch_size={patch_size}.")
    return (pretrain_img_size // patch_size,) * 2


def resample_positions(pos: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A position embedding on another grid, bicubically and in float32, as the released models do in every pass.

    Shape:
        pos (1, old_h*old_w, C) -> (1, new_h*new_w, C)
    """
    # In exported graphs that leave the size open, the sides are no plain numbers, and nothing may depend on this one.
    if all(isinstance(side, int) for side in new) and old == new:
        return pos
    pos = pos.float().transpose(1, 2).unflatten(2, old)
    pos = F.interpolate(pos, size=new, mode="bicubic", align_corners=False)
    return pos.flatten(2).transpose(1, 2)


def linear_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth that grows linearly from 0 in the first block to ``rate`` in the last."""
    check_rate("drop_path_rate", rate)
    # Not on the default device: a model may be under construction on the meta device.
    return torch.linspace(0, rate, depth, device="cpu", dtype=torch.float64).tolist()


def init_linears(module: nn.Module) -> None:
    """Truncated normal weights, zero biases: how transformers start before pretrained weights are loaded."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
