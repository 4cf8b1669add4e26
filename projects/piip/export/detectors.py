"""RetinaNet and Mask R-CNN from an image to detections, of tensor operations alone.

Detectron2's own inference asks for values while it runs (how many boxes are left, whether all are finite), which no
exported graph can. Here the best candidates are taken first, a fixed number of them, and only the last step, which
drops what is too weak or overlaps, leaves a number that depends on the image. What comes out is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import nms

from ..errors import ConfigError

__all__ = ["RCNNDetector", "RetinaNetDetector", "detector_of"]


def detector_of(model: nn.Module) -> nn.Module:
    """The detector as a module of an image.

    Shape:
        image (1, 3, H, W), pixels of 0 to 255 in the order that the model reads -> boxes (N, 4), XYXY in pixels,
        scores (N,), classes (N,), and of Mask R-CNN masks (N, M, M): probabilities on a grid over the box

    Raises:
        ConfigError: for a model that is no RetinaNet, Faster or Mask R-CNN.
    """
    if isinstance(model, RetinaNet):
        return RetinaNetDetector(model)
    heads = getattr(model, "roi_heads", None)
    if (
        type(model) is GeneralizedRCNN
        and isinstance(heads, StandardROIHeads)
        and isinstance(heads.box_predictor, FastRCNNOutputLayers)
        and not heads.keypoint_on
    ):
        return RCNNDetector(model)
    kind = type(model).__name__ if heads is None else f"{type(model).__name__} with {type(heads).__name__}"
    raise ConfigError(
        f"a whole {kind} cannot be exported; RetinaNet, Faster R-CNN and Mask R-CNN can. --what backbone exports the "
        "network below the heads."
    )


class _Detector(nn.Module):
    """Normalises the image and runs the backbone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of the backbone."""
        return self.model.backbone((image - self.model.pixel_mean) / self.model.pixel_std)


class RetinaNetDetector(_Detector):
    """RetinaNet, see :func:`detector_of`."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        model, found = self.model, self.features(image)
        maps = [found[name] for name in model.head_in_features]
        boxes, scores, classes = [], [], []
        for anchors, logits, deltas in zip(model.anchor_generator(maps), *model.head(maps), strict=True):
            best, index = _best(_per_anchor(logits, model.num_classes).sigmoid().flatten(), model.test_topk_candidates)
            anchor = index // model.num_classes
            chosen = _per_anchor(deltas, 4)[anchor], anchors.tensor[anchor]
            boxes.append(model.box2box_transform.apply_deltas(*chosen))
            scores.append(best)
            classes.append(index % model.num_classes)
        candidates = [torch.cat(parts) for parts in (boxes, scores, classes)]
        keep = _suppress(*candidates, model.test_nms_thresh, candidates[1] > model.test_score_thresh)
        boxes, scores, classes = (x[keep[: model.max_detections_per_image]] for x in candidates)
        boxes = _clip(boxes, image)
        kept = _nonempty(boxes)
        return {"boxes": boxes[kept], "scores": scores[kept], "classes": classes[kept]}


class RCNNDetector(_Detector):
    """Faster and Mask R-CNN, see :func:`detector_of`."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        heads, maps = self.model.roi_heads, self.features(image)
        proposals = self.propose(maps, image)
        pooled = _pool(heads.box_pooler, [maps[name] for name in heads.box_in_features], proposals)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        boxes = _clip(heads.box_predictor.box2box_transform.apply_deltas(deltas, proposals), image)
        boxes = boxes.unflatten(1, (-1, 4)).expand(-1, logits.shape[1] - 1, -1)  # the same box for all classes, or not
        scores = logits.softmax(dim=-1)[:, :-1]
        classes = torch.arange(scores.shape[1], device=image.device).expand(scores.shape)
        boxes, scores, classes = boxes.flatten(0, 1), scores.flatten(), classes.flatten()
        strong = (scores > heads.box_predictor.test_score_thresh) & _nonempty(boxes)
        keep = _suppress(boxes, scores, classes, heads.box_predictor.test_nms_thresh, strong)
        count = heads.box_predictor.test_topk_per_image
        keep, padded = keep[:count], _fixed(keep, count)
        found = {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
        if heads.mask_on:
            masks = self.masks(maps, boxes[padded], classes[padded])
            found["masks"] = masks[: keep.shape[0]]
        return found

    def propose(self, maps: dict[str, Tensor], image: Tensor) -> Tensor:
        """Boxes (R, 4) that may hold something; what the image has too few of is filled up with repetitions."""
        rpn = self.model.proposal_generator
        features = [maps[name] for name in rpn.in_features]
        boxes, scores, levels = [], [], []
        predicted = zip(rpn.anchor_generator(features), *rpn.rpn_head(features), strict=True)
        for level, (anchors, logits, deltas) in enumerate(predicted):
            best, index = _best(_per_anchor(logits, 1).flatten(), rpn.pre_nms_topk[False])
            chosen = _per_anchor(deltas, 4)[index], anchors.tensor[index]
            boxes.append(_clip(rpn.box2box_transform.apply_deltas(*chosen), image))
            scores.append(best)
            levels.append(torch.full_like(index, level))
        candidates = [torch.cat(parts) for parts in (boxes, scores, levels)]
        keep = _suppress(*candidates, rpn.nms_thresh, _nonempty(candidates[0], rpn.min_box_size))
        return candidates[0][_fixed(keep, rpn.post_nms_topk[False])]

    def masks(self, maps: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        """Probabilities (N, M, M) of the classes of boxes (N, 4)."""
        heads = self.model.roi_heads
        logits = heads.mask_head.layers(
            _pool(heads.mask_pooler, [maps[name] for name in heads.mask_in_features], boxes)
        )
        if logits.shape[1] > 1:
            logits = logits.gather(1, classes.view(-1, 1, 1, 1).expand(-1, -1, *logits.shape[2:]))
        return logits[:, 0].sigmoid()


def _per_anchor(predicted: Tensor, width: int) -> Tensor:
    """(1, A * width, H, W) -> (H * W * A, width)."""
    return predicted[0].permute(1, 2, 0).reshape(-1, width)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return scores.topk(torch.sym_min(scores.shape[0], count))


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, wanted: Tensor) -> Tensor:
    """What non-maximum suppression inside of every group leaves of the wanted ones, the best first."""
    index = wanted.nonzero()[:, 0]
    # Groups lie so far apart that their boxes cannot meet.
    far = boxes.max() - boxes.min() + 1
    moved = boxes + (groups * far)[:, None]
    # torchvision promises torch.export that at least two boxes are left: these two, the last ones and out of the way.
    aside = moved.max() + 1 + moved.new_tensor([[0, 0, 1, 1], [2, 2, 3, 3]])
    lowest = scores.new_full((2,), torch.finfo(scores.dtype).min)
    left = nms(torch.cat([moved[index], aside]), torch.cat([scores[index], lowest]), threshold)
    return index[left.narrow(0, 0, left.shape[0] - 2)]


def _fixed(index: Tensor, count: int) -> Tensor:
    """The first ``count`` indices, filled up with the first one where there are fewer, with 0 where there is none."""
    first = torch.cat([index, index.new_zeros(1)])[0]
    return torch.cat([index, first.expand(count)]).narrow(0, 0, count)


def _clip(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes (N, 4 * K) without what is outside of the image."""
    height, width = image.shape[2:]
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(1)


def _nonempty(boxes: Tensor, side: float = 0) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) > side).all(dim=1)


def _pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What a pooler of Detectron2 gives for boxes (N, 4), each read from the level of its size."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], rois)
    levels = assign_boxes_to_levels(
        [Boxes(boxes)], pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    out = maps[0].new_zeros(len(boxes), maps[0].shape[1], *pooler.output_size)
    for level, (layer, features) in enumerate(zip(pooler.level_poolers, maps, strict=True)):
        index = (levels == level).nonzero()[:, 0]
        out = out.index_copy(0, index, layer(features, rois[index]))
    return out
