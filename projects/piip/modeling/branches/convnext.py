"""ConvNeXt as a branch: four stages of changing width and grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ...errors import ConfigError
from .base import check_rate
from .staged import StagedBranch

__all__ = ["ConvNeXtBranch"]

_STEM_STRIDE = 4


class ConvNeXtBranch(StagedBranch):
    """ConvNeXt without head and final norm, by timm's names.

    What counts as one block of the branch: every block of a stage, and the downsampling layer before each stage but
    the first. ConvNeXt-T has 21, S and B have 39. There is no layer-wise learning-rate decay, as in the released
    models.

    Source: ConvNeXt (arXiv:2201.03545); PIIP released models for the counting of blocks.

    Args:
        depths: blocks of the four stages, e.g. (3, 3, 9, 3) for ConvNeXt-T.
        dims: widths of the four stages, e.g. (96, 192, 384, 768).
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 in the first.
        layer_scale_init: initial value of the residual scales.
        weights: where the pretrained weights are, see :class:`~.base.Branch`.
        use_act_checkpoint: recompute block activations in the backward pass.

    Shape:
        embed: (B, 3, H, W) -> tokens (B, h*w, dims[0]) with h = H // 4, w = W // 4. Every downsampling halves the grid
        and drops an odd last row or column, as in the released models.

    Raises:
        ConfigError: for sizes that do not fit together.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        drop_path_rate: float = 0.0,
        layer_scale_init: float = 1e-6,
        weights: str | None = None,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        depths, dims = tuple(depths), tuple(dims)
        for name, values in (("depths", depths), ("dims", dims)):
            if len(values) != 4 or min(values) < 1:
                raise ConfigError(f"{name}={list(values)} must be four numbers >= 1, one per stage.")
        check_rate("drop_path_rate", drop_path_rate)
        body = ConvNeXt(
            depths=depths, dims=dims, drop_path_rate=drop_path_rate, ls_init_value=layer_scale_init, num_classes=0
        )
        self.stem, self.stages = body.stem, body.stages
        self._paths: list[str] = []
        self.out_channels, self.strides, self.embed_stride = [], [], _STEM_STRIDE
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            paths = [f"stages.{stage}.blocks.{i}" for i in range(depth)]
            if stage:
                paths.insert(0, f"stages.{stage}.downsample")
            self._paths += paths
            self.out_channels += [dim] * len(paths)
            self.strides += [_STEM_STRIDE * 2**stage] * len(paths)
        self.weights = weights
        self.use_act_checkpoint = use_act_checkpoint

    def embed_map(self, image: Tensor) -> Tensor:
        return self.stem(image.contiguous(memory_format=torch.channels_last))

    def run_step(self, x: Tensor, index: int) -> Tensor:
        return self.get_submodule(self._paths[index])(x)

    def block_modules(self) -> list[nn.Module]:
        return [self.get_submodule(path) for path in self._paths]
