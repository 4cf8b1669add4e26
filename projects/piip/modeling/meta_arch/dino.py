"""DINO, the DETR-style detector with denoising queries, as a Detectron2 meta-architecture.

Source: DINO (arXiv:2203.03605).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.modeling import detector_postprocess
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...errors import ConfigError, DataError
from .dino_denoising import ContrastiveDenoising, DenoisingQueries, Target
from .dino_losses import DINOCriterion
from .dino_transformer import DINOTransformer, Predictions

__all__ = ["DINO"]


class DINO(nn.Module):
    """Detector that predicts a set of boxes: no anchors to match, no suppression of doubles.

    Takes and returns what Detectron2's detectors do: a list of dicts with ``image``, for training ``instances`` too;
    losses by name in training, else a list of dicts with ``instances``. The transformer always runs in float32, the
    backbone in autocast's type or that of its own weights (``model.backbone.bottom_up.bfloat16()``).

    Args:
        backbone: gives the maps for the transformer, all of its width, finest first.
        transformer: from maps to predictions.
        denoising: makes the denoising queries of training.
        criterion: losses.
        num_classes: classes of objects.
        detections_per_image: pairs of a query and a class that are returned for an image, best scores first.
        test_score_thresh: detections with less than this score are left out.
        pixel_mean, pixel_std: of the three channels, for values from 0 to 255.
        input_format: order of the channels, "RGB" or "BGR".

    Raises:
        ConfigError: for parts that do not fit together.
        DataError: in training, for labels that are no class of the detector.
    """

    def __init__(
        self,
        backbone: Backbone,
        transformer: DINOTransformer,
        denoising: ContrastiveDenoising,
        criterion: DINOCriterion,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int = 300,
        test_score_thresh: float = 0.0,
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        widths = [shape.channels for shape in shapes.values()]
        if widths != [transformer.dim] * transformer.num_levels:
            raise ConfigError(
                f"DINO: the backbone gives {len(widths)} maps of widths {widths}, but the transformer takes "
                f"{transformer.num_levels} of width {transformer.dim}; set transformer.num_levels and transformer.dim, "
                "or num_outputs and out_channels of the backbone."
            )
        for part in (transformer, denoising):
            if part.num_classes != num_classes:
                raise ConfigError(
                    f"DINO: num_classes={num_classes}, but its {type(part).__name__} has "
                    f"num_classes={part.num_classes}; they must be the same."
                )
        if not 1 <= detections_per_image <= transformer.num_queries:
            raise ConfigError(
                f"DINO: detections_per_image={detections_per_image} must be between 1 and the transformer's "
                f"num_queries={transformer.num_queries}; change one of them."
            )
        if len(pixel_mean) != 3 or len(pixel_std) != 3:
            raise ConfigError(
                f"DINO: pixel_mean={list(pixel_mean)} and pixel_std={list(pixel_std)} must have a number for each of "
                "the three channels."
            )
        if input_format not in ("RGB", "BGR"):
            raise ConfigError(f"DINO: input_format={input_format!r} must be 'RGB' or 'BGR'.")
        self.backbone, self.transformer, self.denoising, self.criterion = backbone, transformer, denoising, criterion
        self.in_features = list(shapes)
        self.num_classes = num_classes
        self.detections_per_image, self.test_score_thresh = detections_per_image, test_score_thresh
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        images = self.preprocess(batched_inputs)
        if self.training:
            targets = self.targets(batched_inputs)
            denoising = self.denoising(targets)
            losses = self.criterion(self.predict(images, denoising), targets, denoising)
            if denoising is None:  # all parameters take part in every step, or distributed training waits for them
                losses["loss_cls_dn"] = losses["loss_cls_dn"] + 0 * self.denoising.class_embed.weight.sum()
            return losses
        predictions = self.predict(images)
        results = []
        last = zip(predictions.logits[-1], predictions.boxes[-1], images.image_sizes, batched_inputs, strict=True)
        for logits, boxes, (height, width), inputs in last:
            detections = self.detections(logits, boxes, (height, width))
            detections = detector_postprocess(detections, inputs.get("height", height), inputs.get("width", width))
            results.append({"instances": detections})
        return results

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises the images and pads them to one size."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def targets(self, batched_inputs: list[dict]) -> list[Target]:
        """The ground truth of every image, in units of its size."""
        targets = []
        for inputs in batched_inputs:
            if "instances" not in inputs:
                raise DataError(
                    f"Image {inputs.get('file_name', '(without a name)')!r} comes without instances, which training "
                    "needs; use a mapper with is_train=True."
                )
            instances: Instances = inputs["instances"]
            labels, (height, width) = instances.gt_classes, instances.image_size
            wrong = labels[(labels < 0) | (labels >= self.num_classes)].unique().tolist()
            if wrong:
                raise DataError(
                    f"Image {inputs.get('file_name', '(without a name)')!r} has labels {wrong}, but the model has "
                    f"classes 0 to {self.num_classes - 1}; set model.num_classes to the number of the dataset's."
                )
            corners = instances.gt_boxes.tensor.float()
            boxes = box_convert(corners / corners.new_tensor([width, height, width, height]), "xyxy", "cxcywh")
            targets.append(Target(labels.to(self.device), boxes.to(self.device)))
        return targets

    def predict(self, images: ImageList, denoising: DenoisingQueries | None = None) -> Predictions:
        """Backbone and transformer."""
        features = self.backbone(images.tensor)
        padding = torch.ones(len(images), *images.tensor.shape[-2:], dtype=torch.bool, device=images.tensor.device)
        for mask, (height, width) in zip(padding, images.image_sizes, strict=True):
            mask[:height, :width] = False
        # Meta tensors, on which models are counted, know no autocast.
        device = images.tensor.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            return self.transformer([features[name].float() for name in self.in_features], padding, denoising)

    def detections(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Instances:
        """The best pairs of query and class of one image.

        Shape:
            logits (Q, num_classes), boxes (Q, 4) -> up to ``detections_per_image`` detections in an image of ``size``
            (height, width).
        """
        scores = logits.sigmoid().flatten()
        scores, best = scores.topk(min(self.detections_per_image, len(scores)))
        best, scores = best[keep := scores >= self.test_score_thresh], scores[keep]
        height, width = size
        corners = box_convert(boxes[best // self.num_classes], "cxcywh", "xyxy")
        found = Boxes(corners * corners.new_tensor([width, height, width, height]))
        found.clip(size)
        return Instances(size, pred_boxes=found, scores=scores, pred_classes=best % self.num_classes)
