"""The single networks that PIIP competes with, ours and of timm's own modules, with the same pyramid of maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..layers.windows import window_partition, window_unpartition
from ..modeling import FPN, PIIP, SingleBranch
from ..modeling.branches import ViTBranch
from ..modeling.branches.transformer import resample_positions

__all__ = ["VITS", "TimmViT", "make_piip", "make_vit", "of_timm", "randomise", "with_fpn"]

# Width, blocks and heads of the ViTs of the papers; deit_tiny_patch16_224 and so on have the same.
VITS = {"T": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}


def make_vit(size: str) -> SingleBranch:
    """The papers' ViT-B or ViT-L baseline: two blocks with windows of 14 x 14 tokens, then a global one, and so on."""
    width, depth, heads = VITS[size]
    return SingleBranch(ViTBranch(width, depth, heads, window_size=[14, 14, 0] * (depth // 3)))


def make_piip(sizes: str, resolutions: Sequence[int]) -> PIIP:
    """PIIP of DeiT branches: ``"TSB"`` for ViT-T, S and B with windows of 14 x 14 tokens, highest resolution first."""
    branches = [ViTBranch(*VITS[size], window_size=14) for size in sizes]
    return PIIP(branches, resolutions, min(12, *(branch.num_blocks for branch in branches)))


def with_fpn(backbone: Backbone) -> FPN:
    """Under the FPN that a Mask R-CNN has."""
    return FPN(backbone, ["c2", "c3", "c4", "c5"], 256, top_block=LastLevelMaxPool())


def of_timm(like: FPN, side: int) -> FPN:
    """The same as a :func:`make_vit` under an FPN, but its ViT is a :class:`TimmViT`."""
    model = copy.deepcopy(like)
    model.bottom_up = TimmViT(like.bottom_up, side)
    return model


def randomise(model: nn.Module) -> nn.Module:
    """Gives what starts at zero or one, such as gates and sampling places, other values: zeros would hide errors."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "bias" not in name:
            nn.init.uniform_(parameter, 0.1, 0.5)
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


class TimmViT(Backbone):
    """The same network of timm's attention and MLP, called as timm's block calls them but for the windows.

    Args:
        like: a :class:`SingleBranch` of a :class:`ViTBranch`, whose weights are copied.
        side: pixels per side of the images, a multiple of 16.

    Shape:
        as :class:`SingleBranch`.
    """

    def __init__(self, like: SingleBranch, side: int) -> None:
        super().__init__()
        branch = like.branch
        self.grid = (side // branch.embed_stride,) * 2
        self.windows = branch.window_sizes
        width = branch.out_channels[0]
        self.vit = timm.models.VisionTransformer(
            side,
            embed_dim=width,
            depth=branch.num_blocks,
            num_heads=branch.num_heads,
            init_values=1.0,
            class_token=False,
            global_pool="",
            final_norm=False,
            num_classes=0,
        )
        weights = branch.state_dict()
        with torch.no_grad():
            weights["pos_embed"] = resample_positions(weights["pos_embed"], branch.pos_grid, self.grid)
        self.vit.load_state_dict(weights)
        self.neck = copy.deepcopy(like.neck)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self.neck.output_shape()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.vit.patch_embed(image) + self.vit.pos_embed
        for block, window in zip(self.vit.blocks, self.windows, strict=True):
            y = block.norm1(x)
            if window:
                y = block.attn(window_partition(y.unflatten(1, self.grid), window).flatten(1, 2))
                y = window_unpartition(y.unflatten(1, (window, window)), self.grid).flatten(1, 2)
            else:
                y = block.attn(y)
            x = x + block.ls1(y)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return self.neck(x.transpose(1, 2).unflatten(2, self.grid))
