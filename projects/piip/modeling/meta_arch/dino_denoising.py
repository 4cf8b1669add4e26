"""Contrastive denoising: queries made of noisy ground truth, which teach the decoder beside the matching ones.

Source: DN-DETR (arXiv:2203.01305), Sec. 4; DINO (arXiv:2203.03605), Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...errors import ConfigError

__all__ = ["ContrastiveDenoising", "DenoisingQueries", "Target", "inverse_sigmoid"]


@dataclass(frozen=True)
class Target:
    """Ground truth of one image.

    Attributes:
        labels: (T,) classes.
        boxes: (T, 4) boxes ``(cx, cy, w, h)`` in units of the image's width and height.
    """

    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DenoisingQueries:
    """Noisy ground truth as decoder queries: ``groups`` times the slots of the positive, then the negative ones.

    Every group has as many slots of either kind as the image with the most objects needs; of other images, the last
    slots are empty.

    Attributes:
        content: (B, D, C), embedded classes.
        boxes: (B, D, 4), noisy boxes, before the sigmoid.
        groups: how often the ground truth occurs.
    """

    content: Tensor
    boxes: Tensor
    groups: int

    def __len__(self) -> int:
        return self.content.shape[1]

    def positives(self, count: int) -> tuple[Tensor, Tensor]:
        """Which queries are to give back which of an image's ``count`` objects: two index tensors."""
        device, slots = self.content.device, len(self) // self.groups
        objects = torch.arange(count, device=device).repeat(self.groups)
        groups = torch.arange(self.groups, device=device).repeat_interleave(count)
        return groups * slots + objects, objects

    def blocked(self, num_matching: int) -> Tensor:
        """What may not attend to what, with the matching queries behind these.

        Matching queries see no ground truth, and groups not one another; what these see of the matching queries does
        no harm.

        Shape:
            (D + num_matching, D + num_matching) bool, True where the row may not look at the column.
        """
        device, slots = self.content.device, len(self) // self.groups
        group = torch.arange(len(self), device=device) // slots
        group = torch.cat([group, group.new_full((num_matching,), -1)])
        return (group[:, None] != group) & (group >= 0)


class ContrastiveDenoising(nn.Module):
    """Makes denoising queries from ground truth.

    Each object gives pairs of queries, in as many groups as ``num_queries`` allows: a positive one, whose box is
    shifted by less than half its size and which is to be corrected, and a negative one, shifted further, which is to
    be recognised as background.

    Args:
        num_classes: classes of the detector.
        dim: width of the decoder.
        num_queries: positive queries per image, about; every object is in at least one group.
        label_noise: twice the share of queries that get a random class, from 0 to 2.
        box_noise: a box's corners move by up to this times half its size, twice as far for negative queries.

    Raises:
        ConfigError: for numbers out of range.
    """

    def __init__(
        self, num_classes: int, dim: int, num_queries: int = 100, label_noise: float = 0.5, box_noise: float = 1.0
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ConfigError(f"denoising: num_queries={num_queries} must be at least 1.")
        if not 0 <= label_noise <= 2:
            raise ConfigError(f"denoising: label_noise={label_noise} must be between 0 and 2.")
        if box_noise < 0:
            raise ConfigError(f"denoising: box_noise={box_noise} must not be negative.")
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise = label_noise, box_noise
        self.class_embed = nn.Embedding(num_classes, dim)

    def forward(self, targets: Sequence[Target]) -> DenoisingQueries | None:
        """Draws queries; None where no image has an object."""
        largest = max((len(target) for target in targets), default=0)
        if largest == 0:
            return None
        groups = max(self.num_queries // largest, 1)
        embed = self.class_embed.weight
        content = embed.new_zeros(len(targets), groups, 2, largest, embed.shape[1])
        boxes = embed.new_zeros(len(targets), groups, 2, largest, 4)
        for image, target in enumerate(targets):
            labels = target.labels.expand(groups, 2, -1)
            wrong = torch.rand(labels.shape, device=labels.device) < self.label_noise / 2
            labels = torch.where(wrong, torch.randint_like(labels, self.num_classes), labels)
            content[image, :, :, : len(target)] = self.class_embed(labels)
            boxes[image, :, :, : len(target)] = inverse_sigmoid(self._shift(target.boxes.expand(groups, 2, -1, -1)))
        return DenoisingQueries(content.flatten(1, 3), boxes.flatten(1, 3), groups)

    def _shift(self, boxes: Tensor) -> Tensor:
        """Moves both corners by random parts of half the box: by less than all of it, of negatives by more."""
        corners = box_convert(boxes, "cxcywh", "xyxy")
        half = boxes[..., 2:].repeat(1, 1, 1, 2) / 2
        amount = torch.rand_like(corners)
        amount[:, 1] += 1
        sign = torch.randint_like(corners, 2) * 2 - 1
        corners = (corners + self.box_noise * sign * amount * half).clamp(0, 1)
        return box_convert(corners, "xyxy", "cxcywh")


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of ``x`` in [0, 1], with both odds at least ``eps``."""
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
