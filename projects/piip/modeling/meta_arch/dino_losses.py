"""Matching of predictions with ground truth, and the losses of DINO.

Source: DETR (arXiv:2005.12872), Sec. 3.1; Deformable DETR (arXiv:2010.04159), A.4 for the focal cost and loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from .dino_denoising import DenoisingQueries, Target
from .dino_transformer import Predictions

__all__ = ["DINOCriterion"]

# Layer, image and query of every matched prediction, and its object among those of all images, one after the other.
Matches = tuple[Tensor, Tensor, Tensor, Tensor]


class DINOCriterion(nn.Module):
    """Losses of classes (focal), boxes (L1) and overlap (GIoU) for every decoder layer, the proposals and denoising.

    For each image, layer by layer, predictions are matched one to one with objects at the lowest total cost; all other
    predictions are to be background. Every loss is divided by the number of objects, averaged over all processes.

    Args:
        class_weight, box_weight, giou_weight: of the losses.
        class_cost, box_cost, giou_cost: of the matching.
        alpha, gamma: of the focal loss.
    """

    def __init__(
        self,
        class_weight: float = 1.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        class_cost: float = 2.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.weights = {"loss_cls": class_weight, "loss_box": box_weight, "loss_giou": giou_weight}
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost
        self.alpha, self.gamma = alpha, gamma

    def forward(
        self, predictions: Predictions, targets: Sequence[Target], denoising: DenoisingQueries | None = None
    ) -> dict[str, Tensor]:
        """The losses ``loss_cls``, ``loss_box`` and ``loss_giou`` of the last decoder layer.

        With ``_aux`` behind the name the sum over the layers before it, ``_enc`` those of the proposals, ``_dn`` those
        of the denoising queries, summed over all layers.

        Raises:
            FloatingPointError: when predictions are not finite.
        """
        start = 0 if denoising is None else len(denoising)
        logits = torch.cat([predictions.logits[:, :, start:], predictions.proposal_logits[None]])
        boxes = torch.cat([predictions.boxes[:, :, start:], predictions.proposal_boxes[None]])
        objects = _mean_over_processes(sum(map(len, targets)), logits.device)
        losses = {}
        for name, loss in self._losses(logits, boxes, targets, self.match(logits, boxes, targets), objects).items():
            losses |= {name: loss[-2], f"{name}_aux": loss[:-2].sum(), f"{name}_enc": loss[-1]}

        logits, boxes = predictions.logits[:, :, :start], predictions.boxes[:, :, :start]
        matches = _denoising_matches(len(logits), targets, denoising)
        objects = _mean_over_processes(len(matches[0]) / len(logits), logits.device)
        for name, loss in self._losses(logits, boxes, targets, matches, objects).items():
            losses[f"{name}_dn"] = loss.sum()
        return losses

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Matches:
        """Pairs predictions and objects at the lowest cost, for every layer and image on its own.

        Shape:
            logits (layers, B, Q, classes), boxes (layers, B, Q, 4)
        """
        # Here, as it takes half a second that only training a DINO needs.
        from scipy.optimize import linear_sum_assignment

        costs = [self._cost(logits[:, i], boxes[:, i], target) for i, target in enumerate(targets)]
        costs = torch.cat(costs, dim=-1).cpu()  # (layers, Q, all objects); one copy, since each waits for the GPU
        if not costs.isfinite().all():
            raise FloatingPointError("The predictions became infinite or NaN.")
        found: list[tuple[int, int, int, int]] = []
        first = 0
        for image, target in enumerate(targets):
            for layer, cost in enumerate(costs[..., first : first + len(target)].numpy()):
                rows, columns = linear_sum_assignment(cost)
                found += [(layer, image, q, first + t) for q, t in zip(rows.tolist(), columns.tolist(), strict=True)]
            first += len(target)
        return tuple(torch.tensor(found, dtype=torch.long).view(-1, 4).to(logits.device).unbind(1))

    def _cost(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        """(layers, Q, C), (layers, Q, 4) -> (layers, Q, T)"""
        layers, queries = logits.shape[:2]
        chance = logits.float().sigmoid()
        positive = -self.alpha * (1 - chance) ** self.gamma * (chance + 1e-12).log()
        negative = -(1 - self.alpha) * chance**self.gamma * (1 - chance + 1e-12).log()
        wanted, boxes = target.boxes, boxes.float().flatten(0, 1)
        giou = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
        places = self.box_cost * torch.cdist(boxes, wanted, p=1) - self.giou_cost * giou
        return self.class_cost * (positive - negative)[..., target.labels] + places.view(layers, queries, -1)

    def _losses(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], matches: Matches, objects: Tensor
    ) -> dict[str, Tensor]:
        """Weighted losses of every layer, by name."""
        layer, image, query, index = matches
        wanted = torch.cat([target.boxes for target in targets])[index]
        classes = torch.zeros_like(logits)
        classes[layer, image, query, torch.cat([target.labels for target in targets])[index]] = 1
        focal = sigmoid_focal_loss(logits, classes, alpha=self.alpha, gamma=self.gamma)
        found = boxes[layer, image, query]
        corners = (box_convert(b, "cxcywh", "xyxy") for b in (found, wanted))
        per_layer = {
            "loss_cls": focal.sum(dim=(1, 2, 3)),
            "loss_box": boxes.new_zeros(len(boxes)).index_add(0, layer, (found - wanted).abs().sum(-1)),
            "loss_giou": boxes.new_zeros(len(boxes)).index_add(0, layer, generalized_box_iou_loss(*corners)),
        }
        return {name: self.weights[name] * loss / objects for name, loss in per_layer.items()}


def _denoising_matches(num_layers: int, targets: Sequence[Target], denoising: DenoisingQueries | None) -> Matches:
    """Which denoising queries are to give back which objects; the same for all layers."""
    device = targets[0].labels.device
    images, queries, objects = [], [], []
    first = 0
    for image, target in enumerate(targets):
        if denoising is not None:
            query, index = denoising.positives(len(target))
            images.append(torch.full_like(query, image))
            queries.append(query)
            objects.append(first + index)
        first += len(target)
    none = torch.empty(0, dtype=torch.long, device=device)
    image, query, index = (torch.cat(x or [none]).repeat(num_layers) for x in (images, queries, objects))
    layer = torch.arange(num_layers, device=device).repeat_interleave(len(query) // num_layers)
    return layer, image, query, index


def _mean_over_processes(number: float, device: torch.device) -> Tensor:
    """The mean of a number over all processes, at least 1."""
    value = torch.tensor(float(number), device=device)
    if (world := comm.get_world_size()) > 1:
        dist.all_reduce(value)
        value = value / world
    return value.clamp(min=1)
