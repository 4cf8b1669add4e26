"""LSNet without a head: the stem and four stages that backbone, classifier and branch have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from .blocks import Attention, Block, ConvNorm, LSConv, RepDW, Residual

__all__ = ["STRIDES", "VARIANTS", "LSNetBody"]

VARIANTS = {
    "t": {"dims": (64, 128, 256, 384), "depths": (0, 2, 8, 10)},
    "s": {"dims": (96, 192, 320, 448), "depths": (1, 2, 8, 10)},
    "b": {"dims": (128, 256, 384, 512), "depths": (4, 6, 8, 10)},
}

STRIDES = (8, 16, 32, 64)

_BATCH_NORM = ("affine", "all", "none")


class LSNetBody(nn.Module):
    """Stem and stages of LSNet, with the names of the released weights.

    The stem ends at stride 8, and every further stage starts with a downsampling; odd sizes are rounded up. Blocks
    alternate between re-parameterisable depthwise convolution with squeeze-and-excitation, and LS convolution or, in
    the last stage, attention.

    Source: LSNet (arXiv:2503.23135), Sec. 3.3.

    Args:
        dims: widths of the four stages, see :data:`VARIANTS`.
        depths: their numbers of blocks; a stage may have none.
        num_heads: heads of the attention.
        resolution: side of the grid that the tables of attention biases are for.
        bias_resize: how they are fitted to other grids, ``"matrix"`` or ``"offsets"``; see
            :func:`~.position_bias.position_bias`.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 in the first.
        batch_norm: what of BatchNorm is trained. ``"affine"``: its weights and biases, with the statistics of the
            pretraining; ``"all"``: the statistics, too; ``"none"``: nothing.
        num_stages: how many stages to build.
        in_channels: channels of the image.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        num_heads: int = 4,
        resolution: int = 14,
        bias_resize: str = "matrix",
        drop_path_rate: float = 0.0,
        batch_norm: str = "all",
        num_stages: int = 4,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        dims, depths = tuple(dims), tuple(depths)
        if len(dims) != 4 or any(dim < 8 or dim % 8 for dim in dims):
            raise ConfigError(f"dims={list(dims)} must be four multiples of 8, one per stage.")
        if len(depths) != 4 or min(depths) < 0:
            raise ConfigError(f"depths={list(depths)} must be four numbers >= 0, one per stage.")
        if resolution < 1:
            raise ConfigError(f"resolution={resolution} must be a grid side of at least 1.")
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate={drop_path_rate} must be at least 0 and below 1.")
        if batch_norm not in _BATCH_NORM:
            raise ConfigError(f"batch_norm={batch_norm!r} is unknown; use one of {', '.join(_BATCH_NORM)}.")
        self.dims, self.depths = dims[:num_stages], depths[:num_stages]
        self.batch_norm = batch_norm
        self.use_act_checkpoint = False
        self.patch_embed = nn.Sequential(
            ConvNorm(in_channels, dims[0] // 4, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dims[0] // 4, dims[0] // 2, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dims[0] // 2, dims[0], 3, stride=2),
        )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for stage in range(num_stages):
            dim, layers = dims[stage], []
            if stage:
                below = dims[stage - 1]
                layers += [ConvNorm(below, below, 3, stride=2, groups=below), ConvNorm(below, dim)]
            for index in range(depths[stage]):
                rate = next(rates)
                if index % 2 == 0:
                    mixer: nn.Module = RepDW(dim)
                elif stage < 3:
                    mixer = LSConv(dim, rate)
                else:
                    mixer = Residual(Attention(dim, num_heads, resolution, bias_resize), rate)
                layers.append(Block(mixer, dim, squeeze=index % 2 == 0, drop_path=rate))
            setattr(self, f"blocks{stage + 1}", nn.Sequential(*layers))
        if batch_norm == "none":
            for norm in self._batch_norms():
                norm.requires_grad_(False)
        self.train()

    @property
    def stages(self) -> list[nn.Sequential]:
        """Downsampling and blocks of every stage."""
        return [getattr(self, f"blocks{stage + 1}") for stage in range(len(self.dims))]

    def stage_maps(self, image: Tensor) -> Iterator[Tensor]:
        """What every stage ends with, one after the other, so that a caller may stop.

        Shape:
            (B, 3, H, W) -> (B, dims[i], H / STRIDES[i], W / STRIDES[i]), rounded up, for every stage i
        """
        x = self.patch_embed(image)
        for stage in self.stages:
            for layer in stage:
                x = self.run_layer(layer, x)
            yield x

    def run_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Runs a part of the network, whose activations are recomputed in the backward pass if that was asked for."""
        if self.use_act_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, use_reentrant=False)
        return layer(x)

    def train(self, mode: bool = True) -> LSNetBody:
        """Sets the mode of everything but norms whose statistics stay as they are."""
        super().train(mode)
        if self.batch_norm != "all":
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.use_act_checkpoint = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares beside norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}
