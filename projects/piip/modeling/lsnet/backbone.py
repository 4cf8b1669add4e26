"""LSNet as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ...errors import ConfigError, did_you_mean
from .body import STRIDES, LSNetBody

__all__ = ["LSNet"]

_NAMES = tuple(f"c{stride.bit_length() - 1}" for stride in STRIDES)


class LSNet(LSNetBody, Backbone):
    """LSNet for dense tasks: a map per stage.

    Source: LSNet (arXiv:2503.23135), Sec. 4.2; released detectors for the defaults.

    Args:
        dims: widths of the four stages; ``L(LSNet)(**VARIANTS["t"])`` is the config of LSNet-T.
        depths: their numbers of blocks.
        out_features: output maps, some of ``c3`` ... ``c6`` (strides 8 ... 64); later stages are not built.
        num_heads: heads of the attention.
        resolution: side of the grid that the tables of attention biases are for.
        bias_resize: how the biases are fitted to the grid at hand: ``"matrix"`` as in the released detectors, or
            ``"offsets"``, by true offsets in two dimensions.
        drop_path_rate: stochastic depth rate of the last block; it grows linearly from 0 in the first.
        batch_norm: what of BatchNorm is trained. ``"affine"``: its weights and biases, with the statistics of the
            pretraining, as in the released detectors; ``"all"``: the statistics, too; ``"none"``: nothing.
        freeze_at: how many parts are frozen, counted from the input: 1 is the stem, 2 the first stage, too, and so on
            to 5. What is frozen runs in evaluation mode.
        out_norm: normalise every output map over its channels. The maps of LSNet-B are so large that the first losses
            of dense heads are in the thousands; released models have no such norm.
        full_precision: run in float32 inside autocast, for weights whose activations overflow float16. Together with
            ``out_norm`` the maps then fit into float16.
        use_act_checkpoint: recompute block activations in the backward pass. With ``batch_norm="all"``, running
            statistics then take in every batch twice, as everywhere in PyTorch.

    Shape:
        (B, 3, H, W) -> c3 (B, dims[0], H/8, W/8), c4 (B, dims[1], H/16, W/16), c5 (B, dims[2], H/32, W/32),
        c6 (B, dims[3], H/64, W/64); sizes are rounded up, so any image will do that is not smaller than the last stride

    Raises:
        ConfigError: for sizes that do not fit together or an unknown map; in the forward pass for a small image.
    """

    freeze_at = 0

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        out_features: Sequence[str] = _NAMES,
        *,
        num_heads: int = 4,
        resolution: int = 14,
        bias_resize: str = "matrix",
        drop_path_rate: float = 0.0,
        batch_norm: str = "affine",
        freeze_at: int = 0,
        out_norm: bool = False,
        full_precision: bool = False,
        use_act_checkpoint: bool = False,
    ) -> None:
        unknown = [name for name in out_features if name not in _NAMES]
        if unknown or not out_features:
            hint = did_you_mean(unknown[0], _NAMES) if unknown else ""
            raise ConfigError(f"out_features={list(out_features)} must be some of {list(_NAMES)}.{hint}")
        num_stages = max(_NAMES.index(name) for name in out_features) + 1
        if not 0 <= freeze_at <= num_stages + 1:
            raise ConfigError(f"freeze_at={freeze_at} must be from 0 to {num_stages + 1}, the stem and all stages.")
        super().__init__(
            dims,
            depths,
            num_heads=num_heads,
            resolution=resolution,
            bias_resize=bias_resize,
            drop_path_rate=drop_path_rate,
            batch_norm=batch_norm,
            num_stages=num_stages,
        )
        self.freeze_at, self.full_precision = freeze_at, full_precision
        self._output_shape = {
            name: ShapeSpec(channels=dim, stride=stride)
            for name, dim, stride in zip(_NAMES, self.dims, STRIDES, strict=False)
            if name in out_features
        }
        norms = {name: LayerNorm2d(shape.channels) for name, shape in self._output_shape.items()}
        self.out_norms = nn.ModuleDict(norms if out_norm else {})
        self.set_grad_checkpointing(use_act_checkpoint)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        smallest = STRIDES[len(self.dims) - 1]
        if image.dim() != 4 or image.shape[1] != 3 or any(side < smallest for side in image.shape[2:]):
            raise ConfigError(
                f"LSNet got an input of shape {tuple(image.shape)}; it needs (B, 3, H, W) with H and W of at least "
                f"{smallest}, the stride of its last map."
            )
        # Meta tensors, on which models are counted, know no autocast.
        full_precision = self.full_precision and not image.is_meta
        with torch.autocast(image.device.type, enabled=False) if full_precision else nullcontext():
            maps = dict(zip(_NAMES, self.stage_maps(image.float() if full_precision else image), strict=False))
            maps = {name: maps[name] for name in self._output_shape}
            return {name: self.out_norms[name](x) for name, x in maps.items()} if self.out_norms else maps

    def train(self, mode: bool = True) -> LSNet:
        """Sets the mode of everything that is not frozen."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.patch_embed, *self.stages][: self.freeze_at]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output map."""
        return self._output_shape

    @property
    def size_divisibility(self) -> int:
        """What the sides of padded batches must be a multiple of, in pixels."""
        return 32
