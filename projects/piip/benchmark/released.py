"""PIIP as it is published: the same weights, computed step by step as papers and released code describe it.

Only for comparison: what our own modules do otherwise to be fast is undone here. Patches become tokens without a copy,
so that tokens and maps lie in memory channel by channel; windows are cut and joined in every block; residual
connections are sums of scaled terms; interactions run deformable attention in float32, whatever the type of the
network, with reference points made anew and all samples laid out; the pyramid is made by transposed convolutions.
Attention within a branch is torch's fused one, in place of the fused kernel that the released code has for GPUs.

Source: PIIP (arXiv:2501.07783), Sec. 3; Deformable DETR (arXiv:2010.04159), Eq. 2-3, in its plain PyTorch form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.deform_attn import DeformAttn
from ..modeling import PIIP
from ..modeling.branches import BranchState, ViTBranch
from ..modeling.interaction import ConvFFN, Injector, InteractionUnit
from ..modeling.merging import BranchMerge
from ..modeling.necks import Doubling
from .forms import with_same_weights

__all__ = ["as_released"]


def as_released(model: nn.Module) -> nn.Module:
    """A network with the same parameters (not copies) whose PIIP computes in the published way.

    Args:
        model: a PIIP or what contains one, not fused.

    Raises:
        ConfigError: for a PIIP with parts that have no such form here: it is there for ViT branches, deformable
            attention and the simple pyramid.
    """
    model = with_same_weights(model)
    for module in list(model.modules()):
        module.__class__ = _RELEASED.get(type(module), type(module))
    networks = [m for m in model.modules() if isinstance(m, PIIP)]
    if not networks or not all(_is_released(network) for network in networks):
        raise ConfigError(
            f"the {type(model).__name__} has no published form to compare with: that is made for PIIP of ViTBranch "
            "with deformable attention, merged once."
        )
    return model


def _is_released(network: PIIP) -> bool:
    return (
        all(type(branch) is _Branch for branch in network.branches)
        and all(type(m.attn) is _DeformAttn for m in network.modules() if isinstance(m, Injector))
        and type(getattr(network, "merge", None)) is _Merge
    )


class _Branch(ViTBranch):
    def embed(self, image: Tensor) -> BranchState:
        x = self.patch_embed.proj(image)
        pos = self.pos_embed.float().reshape(1, *self.pos_grid, -1).permute(0, 3, 1, 2)
        pos = F.interpolate(pos, size=x.shape[2:], mode="bicubic", align_corners=False)
        return BranchState((x.flatten(2) + pos.flatten(2).to(x.dtype)).transpose(1, 2), (x.shape[2], x.shape[3]))

    def run(self, state: BranchState, start: int, stop: int) -> BranchState:
        x = state.tokens
        for block, window in zip(self.blocks[start:stop], self.window_sizes[start:stop], strict=True):
            x = x + block.drop_path1(block.ls1(self._attention(block.attn, block.norm1(x), state.grid_size, window)))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return state.replace(tokens=x)

    def _attention(self, attn: nn.Module, x: Tensor, grid_size: tuple[int, int], window: int) -> Tensor:
        if window:
            x = _cut(x, grid_size, window)
        qkv = attn.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        return attn.proj(_joined(x, grid_size, window) if window else x)


def _cut(x: Tensor, grid_size: tuple[int, int], side: int) -> Tensor:
    """Tokens (B, h*w, C) to windows (B * windows, side * side, C), with zeros where a window exceeds the grid."""
    x = x.unflatten(1, grid_size)
    x = F.pad(x, (0, 0, 0, -grid_size[1] % side, 0, -grid_size[0] % side))
    b, h, w, c = x.shape
    return x.view(b, h // side, side, w // side, side, c).transpose(2, 3).reshape(-1, side**2, c)


def _joined(x: Tensor, grid_size: tuple[int, int], side: int) -> Tensor:
    """The inverse of :func:`_cut`."""
    (h, w), c = grid_size, x.shape[-1]
    rows, columns = -(-h // side), -(-w // side)
    x = x.view(-1, rows, columns, side, side, c).transpose(2, 3).reshape(-1, rows * side, columns * side, c)
    return x[:, :h, :w].flatten(1, 2)


class _Unit(InteractionUnit):
    def forward(
        self, fine: Tensor, coarse: Tensor, fine_grid: tuple[int, int], coarse_grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        to_fine = self.to_fine(fine, coarse, fine_grid, coarse_grid)
        return to_fine, self.to_coarse(coarse, fine, coarse_grid, fine_grid)


class _Injector(Injector):
    def forward(self, query: Tensor, feat: Tensor, query_grid: tuple[int, int], feat_grid: tuple[int, int]) -> Tensor:
        feat = self.feat_norm(self.proj(feat))
        attended = self.attn(self.query_norm(query).float(), feat.float(), query_grid, feat_grid)
        query = query + self.gamma_attn * attended.to(query.dtype)
        if self.ffn is not None:
            query = query + self.gamma_ffn * self.drop_path(self.ffn(self.ffn_norm(query), query_grid))
        return query


class _DeformAttn(DeformAttn):
    def forward(self, query: Tensor, feat: Tensor, query_grid: tuple[int, int], feat_grid: tuple[int, int]) -> Tensor:
        b, n, _ = query.shape
        heads, points = self.num_heads, self.num_points
        value = _float_linear(self.value_proj, feat).view(b, -1, heads, self.value_proj.out_features // heads)
        offsets = _float_linear(self.sampling_offsets, query).view(b, n, heads, 1, points, 2)
        weights = _float_linear(self.attention_weights, query).view(b, n, heads, points).softmax(-1)
        weights = weights.view(b, n, heads, 1, points)
        y, x = (torch.linspace(0.5, side - 0.5, side, device=query.device) / side for side in query_grid)
        centres = torch.stack([t.reshape(-1) for t in reversed(torch.meshgrid(y, x, indexing="ij"))], -1)
        cells = torch.as_tensor([feat_grid[::-1]], dtype=torch.float32, device=query.device)
        locations = centres[None, :, None, None, None] + offsets / cells[None, None, None, :, None]
        return _float_linear(self.output_proj, _sample(value, [feat_grid], locations, weights))


def _float_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _sample(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Any number of levels: value (B, N, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P)."""
    b, _, heads, dim = value.shape
    queries, levels, points = locations.shape[1], len(grids), locations.shape[4]
    places = 2 * locations - 1
    sampled = []
    for level, (x, (h, w)) in enumerate(zip(value.split([h * w for h, w in grids], dim=1), grids, strict=True)):
        x = x.flatten(2).transpose(1, 2).reshape(b * heads, dim, h, w)
        grid = places[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(b * heads, 1, queries, levels * points)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return out.view(b, heads * dim, queries).transpose(1, 2).contiguous()


class _ConvFFN(ConvFFN):
    def forward(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        x = self.fc1(x)
        x = self.dwconv(x.transpose(1, 2).unflatten(2, grid_size).contiguous()).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class _Merge(BranchMerge):
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size, total = maps[0].shape[2:], 0
        for x, projection, weight in zip(maps, self.projections, self.weights, strict=True):
            x = projection(x.contiguous())
            if x.shape[2:] != size:
                x = F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False).to(x.dtype)
            total = total + weight * x
        return total


_RELEASED = {
    Doubling: nn.ConvTranspose2d,
    ViTBranch: _Branch,
    InteractionUnit: _Unit,
    Injector: _Injector,
    DeformAttn: _DeformAttn,
    ConvFFN: _ConvFFN,
    BranchMerge: _Merge,
}
