"""Semantic FPN: all levels of a pyramid brought to one resolution and added."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from .batch_norm import check_values
from .loss import pixel_loss

__all__ = ["SemanticFPNHead"]


class SemanticFPNHead(SemSegFPNHead):
    """Detectron2's ``SemSegFPNHead`` with dropout, and for levels whose sides are not exact halves of each other.

    Detectron2 doubles maps and adds them, which fails for images that the coarsest stride does not divide; here a map
    is resized to the finest one where the doubling missed it, as in the released LSNet models.

    Source: Panoptic FPN (arXiv:1901.02446), Sec. 4.1; LSNet (arXiv:2503.23135), Sec. 4.3.

    Args:
        input_shape: width and stride of every level that is used.
        num_classes: classes K.
        conv_dims: width of the convolutions.
        common_stride: of the finest level, where the levels are added.
        dropout: share of the channels of the sum that are dropped in training.
        norm: of the convolutions, by Detectron2's names.
        ignore_value: label of pixels that do not count.
        loss_weight: factor of the loss.

    Shape:
        in training (B, C, h, w) per level and labels (B, H, W) -> ``(None, {"loss_sem_seg": ()})``; else
        -> ``((B, K, H, W), {})`` with H and W ``common_stride`` times those of the finest level.

    Raises:
        ConfigError: in training, for a batch that batch norms cannot take.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int = 128,
        common_stride: int = 8,
        dropout: float = 0.1,
        norm: str = "SyncBN",
        ignore_value: int = 255,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            conv_dims=conv_dims,
            common_stride=common_stride,
            loss_weight=loss_weight,
            norm=norm,
            ignore_value=ignore_value,
        )
        self.input_shape = dict(input_shape)
        self.dropout = nn.Dropout2d(dropout)
        nn.init.normal_(self.predictor.weight, std=0.01)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits at the common stride."""
        if self.training:
            coarsest = features[self.in_features[-1]]
            values = coarsest[:, 0].numel()
            check_values(self.scale_heads[-1][0].norm, values, "train on larger images or at least two per process")
        maps = [head(features[name]) for name, head in zip(self.in_features, self.scale_heads, strict=True)]
        size = maps[0].shape[-2:]
        resized = [x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear") for x in maps]
        return self.predictor(self.dropout(sum(resized)))

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of logits at the common stride."""
        return {"loss_sem_seg": self.loss_weight * pixel_loss(predictions, targets, self.ignore_value)}
