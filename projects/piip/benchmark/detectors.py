"""Whole detectors on our backbones and on Detectron2's R50-FPN: inference, a training step, the backbone's share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..model_zoo import get_config
from .records import Row, environment
from .timing import Settings, in_turns, now, run_once

__all__ = ["CASES", "DetectorCase"]

_OBJECTS = 7  # of an image, as in COCO on average


@dataclass(frozen=True)
class DetectorCase:
    """Detectors of one kind, each at the size that it was published with.

    Attributes:
        kind: ``"Mask R-CNN"`` or ``"RetinaNet"``.
        models: name of a config, or ``"R50-FPN"`` for Detectron2's, and height and width of the image it gets.
        training: a training step (forward and backward) instead of inference.
        rounds: at most so many turns: one takes seconds.
    """

    kind: str
    models: tuple[tuple[str, tuple[int, int]], ...]
    training: bool = False
    rounds: int = 2

    @property
    def name(self) -> str:
        sizes = " and ".join(dict.fromkeys(f"{h}x{w}" for _, (h, w) in self.models))
        return f"{self.kind} {'training step' if self.training else 'inference'} at {sizes}"

    @property
    def quick(self) -> bool:
        """None is among the few cases of continuous integration: the heads alone take seconds."""
        return False

    def measure(self, settings: Settings) -> list[Row]:
        """A row per detector, with the backbone's share of the first call (in training: of its forward pass).

        Half precision is autocast's, as in our trainings and predictors: some of Detectron2's operators need float32.

        Raises:
            ArithmeticError: when a detector finds nothing, or its loss is no number.
        """
        ways, numbers, first = {}, {}, {}
        for config, size in self.models:
            torch.manual_seed(0)
            name = f"{config.removesuffix('.py')} at {size[0]}x{size[1]}"
            model = _build(config, self.kind).to(settings.device).train(self.training)
            ways[name] = _run(model, size, settings)
            with _clocks(model, settings.device) as spent:
                once = run_once(ways[name], settings)
            _check_answers(name, once.result, self.training)
            share = spent["backbone"] / spent["whole"]
            numbers[name], first[name] = {"backbone_share": share, "peak_mb": once.peak / 1e6}, once.ms
        turns = in_turns(ways, settings.at_most(self.rounds), first)
        about = environment(settings)
        rows = []
        for name, turn in turns.items():
            more = {"images_per_s": 1000 / turn.median, **numbers[name]}
            rows.append(Row("detector", self.name, name, *turn.values, more, about))
        return rows


_R50 = "R50-FPN"
_R50_CONFIGS = {"Mask R-CNN": "common/models/mask_rcnn_fpn.py", "RetinaNet": "common/models/retinanet.py"}
_LSNET = "mask_rcnn_lsnet_t_1x.py"
_PIIP = "mask_rcnn_piip_tsb_1120_896_448_1x.py"
CASES = [
    # What COCO's images of 640x480 become.
    DetectorCase("Mask R-CNN", ((_R50, (800, 1088)), (_LSNET, (800, 1088)), (_PIIP, (672, 896)))),
    DetectorCase("RetinaNet", ((_R50, (800, 1088)), ("retinanet_lsnet_t_1x.py", (800, 1088)))),
    DetectorCase("Mask R-CNN", ((_R50, (448, 448)), (_LSNET, (448, 448)), (_PIIP, (448, 448))), training=True),
]


def _build(config: str, kind: str) -> nn.Module:
    if config != _R50:
        return instantiate(get_config(config).model)
    model = model_zoo.get_config(_R50_CONFIGS[kind]).model
    model.backbone.bottom_up.freeze_at = 2  # as all its recipes do
    model = instantiate(model)
    # Frozen norms of untrained weights leave features to grow without bounds, and no proposal would be left.
    resnet = model.backbone.bottom_up
    resnet.stem.conv1.norm.weight.fill_(1 / 64)
    for stage in resnet.stages:
        for block in stage:
            block.conv3.norm.weight.fill_(0.2)
    return model


def _run(model: nn.Module, size: tuple[int, int], settings: Settings) -> Callable[[], Tensor | Instances]:
    """What is timed: answers to an image, or the losses and gradients of one with random boxes and masks."""
    # Without training nearly nothing is detected: one class is made likely, so that what follows has work.
    scores = model.roi_heads.box_predictor.cls_score if hasattr(model, "roi_heads") else model.head.cls_score
    with torch.no_grad():
        scores.bias[:1] += 5
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, device=settings.device)
    given = [{"image": image, "height": size[0], "width": size[1]}]
    autocast = partial(torch.autocast, settings.device, settings.dtype, enabled=settings.dtype != torch.float32)
    if not model.training:

        @torch.no_grad()
        def infer() -> Instances:
            with autocast():
                return model(given)[0]["instances"]

        return infer
    corner = torch.rand(_OBJECTS, 2) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(_OBJECTS, 2)], 1) * torch.tensor(size[::-1]).repeat(2)
    masks = torch.zeros(_OBJECTS, *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    truth = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.arange(_OBJECTS), gt_masks=BitMasks(masks))
    given[0]["instances"] = truth

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        with EventStorage(), autocast():  # the storage is for the heads' own statistics
            loss = sum(model(given).values())
        loss.backward()
        return loss.detach()

    return step


def _check_answers(name: str, result: Tensor | Instances, training: bool) -> None:
    good = 0 < result < 1e4 if training else len(result) > 0
    if not good:
        raise ArithmeticError(f"{name}: answers {result}; its time means nothing.")


@contextmanager
def _clocks(model: nn.Module, device: str) -> Iterator[dict[str, float]]:
    """Seconds that the model's latest call took, and its backbone's part of it.

    Not where calls are timed, since clocks wait for a GPU.
    """
    spent: dict[str, float] = {}
    hooks = []
    for name, module in (("whole", model), ("backbone", model.backbone)):

        def start(*_: object, name: str = name) -> None:
            spent[name] = -now(device)

        def stop(*_: object, name: str = name) -> None:
            spent[name] += now(device)

        hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    yield spent
    for hook in hooks:
        hook.remove()
