"""Image classification as a Detectron2 meta-architecture around any network that gives logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError

__all__ = ["ImageClassifier"]


class ImageClassifier(nn.Module):
    """Trains and runs a network from normalised images to logits, such as any classifier of timm.

    Takes a list of dicts with ``image`` (3, H, W), RGB, values from 0 to 255, all of one size, and for training
    ``label``. Returns losses by name in training, else a list of dicts with ``scores`` (num_classes,), probabilities.

    In training the batch is normalised, then parts of the images are erased, then pairs of them are mixed, all on the
    model's device. Networks made for distillation return a pair of logits in training: with a teacher the first ones
    learn the labels and the second ones the teacher's choice, without one both learn the labels. The only logits of
    other networks learn both.

    Source: timm's and DeiT's (arXiv:2012.12877) training; hard distillation is Sec. 4 there.

    Args:
        network: (B, 3, H, W) -> logits (B, num_classes), or a pair of them.
        num_classes: classes.
        pixel_mean, pixel_std: of the three channels, for values from 0 to 255.
        label_smoothing: share of a label that is spread over all classes, also over those of mixed labels.
        mixup: arguments of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``, ``switch_prob``, ...) but for the
            number of classes and the smoothing, which are those above; None mixes nothing.
        erasing: arguments of timm's ``RandomErasing`` (``probability``, ``mode``, ...); None erases nothing.
        teacher: images (B, 3, H, W), RGB, values from 0 to 255 -> logits; with ``num_classes``. See
            :class:`piip.engine.distillation.Teacher`.

    Raises:
        ConfigError: for arguments that are unknown or do not fit together, such as a network with other classes than
            ``num_classes`` (when called, if the network does not tell them); when called, for a batch that cannot be
            mixed.
        DataError: when called, for images of different sizes or labels that are missing or no class of the model.
    """

    input_format = "RGB"

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        label_smoothing: float = 0.0,
        mixup: Mapping[str, Any] | None = None,
        erasing: Mapping[str, Any] | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if len(pixel_mean) != 3 or len(pixel_std) != 3:
            raise ConfigError(
                f"ImageClassifier: pixel_mean={list(pixel_mean)} and pixel_std={list(pixel_std)} must have a number "
                "for each of the three channels."
            )
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"ImageClassifier: label_smoothing={label_smoothing} must be at least 0 and below 1.")
        if (classes := getattr(network, "num_classes", num_classes)) != num_classes:
            raise ConfigError(
                f"The network {type(network).__name__} has {classes} classes, but the model num_classes={num_classes}; "
                "make the network with the same num_classes."
            )
        if teacher is not None and teacher.num_classes != num_classes:
            raise ConfigError(
                f"The teacher knows {teacher.num_classes} classes and the model {num_classes}; distillation needs a "
                "teacher of the same classes."
            )
        if teacher is not None and hasattr(network, "set_distilled_training"):
            network.set_distilled_training(True)  # timm's networks return both logits only when they are told to
        self.network = network
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixup = mixup and _make(Mixup, "mixup", {**mixup, "label_smoothing": 0.0, "num_classes": num_classes})
        if self.mixup and not (self.mixup.mixup_alpha > 0 or self.mixup.cutmix_alpha > 0):
            raise ConfigError("mixup needs mixup_alpha or cutmix_alpha above 0; mixup=null switches both off.")
        self.erasing = erasing and _make(RandomErasing, "erasing", erasing)
        self.teacher = teacher
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images = self.preprocess(batched_inputs)
        if not self.training:
            return [{"scores": scores} for scores in self._checked(self.network(images)).softmax(-1)]
        targets = self.targets(batched_inputs)
        images, targets = self.augment(images, targets)
        outputs = self.network(images)
        heads = [self._checked(logits) for logits in (outputs if isinstance(outputs, tuple | list) else [outputs])]
        return self.losses(heads, images, targets)

    def preprocess(self, batched_inputs: list[dict]) -> Tensor:
        """Normalised images (B, 3, H, W)."""
        sizes = {tuple(x["image"].shape) for x in batched_inputs}
        if len(sizes) > 1:
            raise DataError(
                f"The images of a batch differ in size ({', '.join(map(str, sorted(sizes)))}); let the transform of "
                "the data loader resize and crop them, or load them one by one."
            )
        images = torch.stack([x["image"] for x in batched_inputs]).to(self.device)
        return (images - self.pixel_mean) / self.pixel_std

    def targets(self, batched_inputs: list[dict]) -> Tensor:
        """Labels (B,)."""
        for inputs in batched_inputs:
            label = inputs.get("label")
            if label is None or not 0 <= label < self.num_classes:
                raise DataError(
                    f"Image {inputs.get('file_name') or inputs.get('image_id')!r} has the label {label}, but the model "
                    f"has classes 0 to {self.num_classes - 1}; correct the label or model.num_classes."
                )
        return torch.tensor([x["label"] for x in batched_inputs], device=self.device)

    def augment(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Erases and mixes in place, where the model is told to.

        Shape:
            images (B, 3, H, W) and labels (B,) -> the same, or labels (B, num_classes) that sum to 1.
        """
        if self.erasing is not None:
            self.erasing.device = images.device
            images = self.erasing(images)
        if self.mixup is not None:
            if len(images) % 2:
                raise ConfigError(
                    f"mixup makes pairs of the {len(images)} images that a process trains on; set "
                    "dataloader.train.total_batch_size so that each process gets an even number, or model.mixup=null."
                )
            images, targets = self.mixup(images, targets)
        return images, targets

    def losses(self, heads: Sequence[Tensor], images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy to the labels; in distillation half of it, and half of that to the teacher's choice.

        Shape:
            logits (B, num_classes) of one or two heads; normalised images (B, 3, H, W); labels (B,) or
            (B, num_classes).
        """
        to_labels = partial(F.cross_entropy, target=targets, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return {"loss_cls": torch.stack([to_labels(logits) for logits in heads]).mean()}
        with torch.no_grad():
            chosen = self.teacher(images * self.pixel_std + self.pixel_mean).argmax(-1)
        return {"loss_cls": 0.5 * to_labels(heads[0]), "loss_distill": 0.5 * F.cross_entropy(heads[-1], chosen)}

    def _checked(self, logits: Tensor) -> Tensor:
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ConfigError(
                f"The network {type(self.network).__name__} gives logits of shape {tuple(logits.shape)}, but the model "
                f"has num_classes={self.num_classes}; make the network with the same num_classes."
            )
        return logits.float()


def _make(kind: type, name: str, settings: Mapping[str, Any]) -> Any:
    try:
        return kind(**settings)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"{name}={dict(settings)} cannot be used: {error or 'a value is out of range'}.") from error
