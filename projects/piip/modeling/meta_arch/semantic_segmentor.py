"""Semantic segmentation: Detectron2's segmentor with the inference that the published models are tested with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch import SemanticSegmentor as _SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from ...errors import ConfigError

__all__ = ["SemanticSegmentor"]


class SemanticSegmentor(_SemanticSegmentor):
    """Detectron2's ``SemanticSegmentor`` with sliding windows and test-time augmentation.

    Without windows the images of a batch are padded to one size and seen whole. With windows every image is seen in
    squares that overlap, and logits are averaged where they do; images smaller than a window are padded to it.

    Args:
        backbone: any of Detectron2's.
        sem_seg_head: takes its maps; has ``ignore_value``.
        pixel_mean: of every channel.
        pixel_std: of every channel.
        input_format: order of the channels.
        train_size: pixels per side that images of a training are padded to at least; 0 pads to the largest of a batch
            alone.
        window_size: pixels per side of the windows; 0 looks at whole images.
        window_stride: pixels from one window to the next.
        test_scales: sizes that every image is seen in, relative to its own. Where the inputs have ``original``, the
            picture before it was resized for the test, other sizes than 1 are made of that.
        test_flip: see every image mirrored, too.

    Returns:
        in training the head's losses; else for each image ``{"sem_seg": (K, H, W)}`` at ``height`` and ``width`` of the
        input, else its own: logits, or the mean of probabilities over several views.

    Raises:
        ConfigError: for a head made for other maps than the backbone's, or numbers that do not fit.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "RGB",
        train_size: int = 0,
        window_size: int = 0,
        window_stride: int = 0,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
    ) -> None:
        super().__init__(backbone=backbone, sem_seg_head=sem_seg_head, pixel_mean=pixel_mean, pixel_std=pixel_std)
        _check_shapes(backbone, sem_seg_head)
        if min(train_size, window_size, window_stride) < 0 or window_stride > window_size:
            raise ConfigError(
                f"train_size={train_size}, window_size={window_size} and window_stride={window_stride} must not be "
                "negative, and a stride larger than the window would leave gaps."
            )
        if not test_scales or min(test_scales) <= 0:
            raise ConfigError(f"test_scales={list(test_scales)} must be one positive number or several.")
        self.input_format = input_format
        self.train_size = train_size
        self.window_size, self.window_stride = window_size, window_stride or window_size
        self.test_scales, self.test_flip = tuple(test_scales), test_flip

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images = [self._normalised(x["image"]) for x in batched_inputs]
        if self.training:
            return self._losses(images, [x["sem_seg"].to(self.device) for x in batched_inputs])
        results = []
        predictions = self._predict(images, [x.get("original", x["image"]) for x in batched_inputs])
        for logits, image, inputs in zip(predictions, images, batched_inputs, strict=True):
            size = image.shape[-2:]
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            results.append({"sem_seg": sem_seg_postprocess(logits, size, height, width)})
        return results

    def _normalised(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _losses(self, images: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
        ignored = self.sem_seg_head.ignore_value
        divisor = self.backbone.size_divisibility
        batch = ImageList.from_tensors([_pad(x, self.train_size) for x in images], divisor)
        labels = ImageList.from_tensors([_pad(x, self.train_size, ignored) for x in targets], divisor, ignored)
        return self.sem_seg_head(self.backbone(batch.tensor), labels.tensor)[1]

    def _predict(self, images: list[Tensor], originals: list[Tensor]) -> list[Tensor]:
        """What is shown for every image, (K, h, w) at its size."""
        if self.test_scales == (1.0,) and not self.test_flip:
            return self._logits(images)
        views = [
            [logits.softmax(0) for logits in view]
            for scale in self.test_scales
            for view in self._views(images, originals, scale)
        ]
        return [torch.stack(same).mean(0) for same in zip(*views, strict=True)]

    def _views(self, images: list[Tensor], originals: list[Tensor], scale: float) -> Iterator[list[Tensor]]:
        """Logits of the images at one scale, and of their mirror images, resized to the images."""
        sizes, scaled = [x.shape[-2:] for x in images], images
        if scale != 1:
            # Smoothed where they become smaller, as pictures are for a test at one scale.
            scaled = [
                _resize(self._normalised(x), self._scaled(size, scale), antialias=True)
                for x, size in zip(originals, sizes, strict=True)
            ]
        yield [_resize(p, size) for p, size in zip(self._logits(scaled), sizes, strict=True)]
        if self.test_flip:
            mirrored = self._logits([x.flip(-1) for x in scaled])
            yield [_resize(p.flip(-1), size) for p, size in zip(mirrored, sizes, strict=True)]

    def _scaled(self, size: Sequence[int], scale: float) -> list[int]:
        """The size at a scale, rounded up to what needs no padding."""
        divisor = self.backbone.size_divisibility or 1
        return [math.ceil(side * scale / divisor) * divisor for side in size]

    def _logits(self, images: list[Tensor]) -> list[Tensor]:
        return [self._slide(x) for x in images] if self.window_size else self._whole(images)

    def _whole(self, images: list[Tensor]) -> list[Tensor]:
        batch = ImageList.from_tensors(images, self.backbone.size_divisibility)
        logits, _ = self.sem_seg_head(self.backbone(batch.tensor))
        return [p[:, :h, :w] for p, (h, w) in zip(logits, batch.image_sizes, strict=True)]

    def _slide(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        image, window = _pad(image, self.window_size), self.window_size
        total, count = None, image.new_zeros(image.shape[-2:])
        for top in self._starts(image.shape[-2]):
            for left in self._starts(image.shape[-1]):
                (logits,) = self._whole([image[:, top : top + window, left : left + window]])
                if total is None:
                    total = logits.new_zeros(len(logits), *image.shape[-2:])
                total[:, top : top + window, left : left + window] += logits
                count[top : top + window, left : left + window] += 1
        return (total / count)[:, :height, :width]

    def _starts(self, length: int) -> list[int]:
        """Where windows begin; the last one ends with the image."""
        last = length - self.window_size
        return [min(k * self.window_stride, last) for k in range(math.ceil(last / self.window_stride) + 1)]


def _pad(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """Adds to the right and at the bottom what lacks to ``side`` pixels."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, max(0, side - width), 0, max(0, side - height)), value=value)


def _resize(x: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    if list(x.shape[-2:]) == list(size):
        return x
    return F.interpolate(x[None], tuple(size), mode="bilinear", align_corners=False, antialias=antialias)[0]


def _check_shapes(backbone: Backbone, head: nn.Module) -> None:
    """A head that was made for other maps fails late, with a message about convolutions."""
    made = backbone.output_shape()
    for name, wanted in getattr(head, "input_shape", {}).items():
        if name not in made:
            raise ConfigError(f"the segmentation head wants the map {name!r}, but the backbone makes {list(made)}.")
        if (wanted.channels, wanted.stride) != (made[name].channels, made[name].stride):
            raise ConfigError(
                f"the segmentation head is made for {wanted.channels} channels at stride {wanted.stride} in the map "
                f"{name!r}, but the backbone makes {made[name].channels} at stride {made[name].stride}; correct "
                "model.sem_seg_head.input_shape."
            )
