"""UPerNet: pooling at several scales on top of a pyramid, and a fusion of all its levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ...errors import ConfigError, did_you_mean
from .batch_norm import check_values
from .loss import pixel_loss

__all__ = ["FCNHead", "UPerNetHead"]


class FCNHead(nn.Module):
    """3x3 convolutions on one map and a classifier of its pixels.

    Args:
        in_channels: width C of the map.
        num_classes: classes K.
        channels: width of the convolutions.
        num_convs: how many, at least one.
        dropout: share of channels that are dropped before the classifier in training.
        norm: of the convolutions, by Detectron2's names.

    Shape:
        (B, C, h, w) -> (B, K, h, w)
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int,
        num_convs: int = 1,
        dropout: float = 0.1,
        norm: str = "SyncBN",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(_conv(channels if k else in_channels, channels, 3, norm) for k in range(num_convs)),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _predictor(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.dropout(self.convs(x)))


class UPerNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pathway, and a classifier on all levels side by side.

    Source: UPerNet (arXiv:1807.10221), Sec. 3; the layout of the released PIIP models.

    Args:
        input_shape: width and stride of every map that is used.
        num_classes: classes K.
        channels: width of everything inside.
        pool_scales: sides of the grids that the coarsest map is pooled to.
        dropout: share of channels that are dropped before the classifier in training.
        norm: of the convolutions, by Detectron2's names. Batch norms need more than one image per batch in training.
        align_corners: of all resizing.
        ignore_value: label of pixels that do not count.
        loss_weight: factor of the loss.
        auxiliary_feature: map that an :class:`FCNHead` learns from besides, in training only; None for none.
        auxiliary_channels: its width.
        auxiliary_loss_weight: factor of its loss.

    Shape:
        in training (B, C, h, w) per map and labels (B, H, W) -> ``(None, losses)``; else -> ``((B, K, H, W), {})`` with
        H and W of the image that the finest map's stride leads back to.

    Raises:
        ConfigError: for an unknown auxiliary map, or, in training, for a batch that batch norms cannot take.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm: str = "SyncBN",
        align_corners: bool = False,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        auxiliary_feature: str | None = None,
        auxiliary_channels: int = 256,
        auxiliary_loss_weight: float = 0.4,
    ) -> None:
        super().__init__()
        shapes = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        if len(shapes) < 2:
            raise ConfigError(f"UPerNet needs two maps at least, but input_shape has {list(shapes) or 'none'}.")
        if auxiliary_feature is not None and auxiliary_feature not in shapes:
            raise ConfigError(
                f"auxiliary_feature={auxiliary_feature!r} must be one of {list(shapes)}, the maps of input_shape, or "
                f"null.{did_you_mean(auxiliary_feature, shapes)}"
            )
        self.input_shape = dict(input_shape)
        self.in_features = list(shapes)
        self.common_stride = next(iter(shapes.values())).stride
        self.align_corners, self.ignore_value, self.loss_weight = align_corners, ignore_value, loss_weight
        widths = [shape.channels for shape in shapes.values()]
        self.pooling = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), _conv(widths[-1], channels, 1, norm)) for scale in pool_scales
        )
        self.pooling_fusion = _conv(widths[-1] + len(pool_scales) * channels, channels, 3, norm)
        self.laterals = nn.ModuleList(_conv(width, channels, 1, norm) for width in widths[:-1])
        self.outputs = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in widths[:-1])
        self.fusion = _conv(len(widths) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = _predictor(channels, num_classes)
        self.auxiliary_feature, self.auxiliary_loss_weight = auxiliary_feature, auxiliary_loss_weight
        if auxiliary_feature is not None:
            width = shapes[auxiliary_feature].channels
            self.auxiliary = FCNHead(width, num_classes, auxiliary_channels, dropout=dropout, norm=norm)

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        if not self.training:
            size = [side * self.common_stride for side in features[self.in_features[0]].shape[-2:]]
            return self._resize(self.layers(features), size), {}
        self._check_batch(features)
        losses = {"loss_sem_seg": self.loss_weight * self._loss(self.layers(features), targets)}
        if self.auxiliary_feature is not None:
            logits = self.auxiliary(features[self.auxiliary_feature])
            losses["loss_auxiliary"] = self.auxiliary_loss_weight * self._loss(logits, targets)
        return None, losses

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits at the stride of the finest map."""
        maps = [features[name] for name in self.in_features]
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=False)]
        levels.append(self._pool(maps[-1]))
        for k in reversed(range(len(levels) - 1)):
            levels[k] = levels[k] + self._resize(levels[k + 1], levels[k].shape[-2:])
        levels = [*(output(x) for output, x in zip(self.outputs, levels, strict=False)), levels[-1]]
        levels = [self._resize(x, levels[0].shape[-2:]) for x in levels]
        return self.predictor(self.dropout(self.fusion(torch.cat(levels, 1))))

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [self._resize(stage(x), x.shape[-2:]) for stage in self.pooling]
        return self.pooling_fusion(torch.cat([x, *pooled], 1))

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if list(x.shape[-2:]) == list(size):
            return x
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=self.align_corners)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return pixel_loss(logits, targets, self.ignore_value, self.align_corners)

    def _check_batch(self, features: Mapping[str, Tensor]) -> None:
        for grid, conv in self.pooling:
            values = len(features[self.in_features[0]]) * grid.output_size**2
            check_values(conv.norm, values, "set dataloader.train.total_batch_size to at least two images per process")


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    c2_msra_fill(conv)
    return conv


def _predictor(channels: int, num_classes: int) -> nn.Conv2d:
    predictor = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(predictor.weight, std=0.01)
    nn.init.zeros_(predictor.bias)
    return predictor
