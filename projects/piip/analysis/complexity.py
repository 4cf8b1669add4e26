"""The true cost of a model, part by part, for one image of any size.

Everything runs on meta tensors, which have shapes but no memory: the largest detectors take seconds on a laptop.
torch's FlopCounterMode counts products and convolutions as they are executed, so it needs neither a trace nor a rule
per layer; fvcore's counter traces the model with torch.jit, which takes minutes for PIIP and leaves fused attention
out. On the meta device attention runs as plain products, which FlopCounterMode sees (its fused CPU kernel it does
not). Our own operators have formulas there, whatever backend they run on.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError, did_you_mean
from ..modeling import Branch
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.meta_arch import DINO, ImageClassifier, SemanticSegmentor
from .cost import Cost
from .shapes import PRODUCTS, UNCOUNTED, QuickShapes

__all__ = ["CONVENTIONS", "Complexity", "analyze", "natural_size"]

CONVENTIONS = (
    "One image. GMACs: multiply-adds of matrix products, convolutions, attention (with padded windows) and deformable "
    "sampling (5 per sampled value), each counted once; a fused multiply-add is often called two FLOPs. Not "
    "counted: normalisation, activation functions, resizing, pooling (ROIAlign too), NMS. Activations: elements of the "
    "outputs of linear layers and convolutions."
)

# Modules that are shown by their children; all others are one part.
_DICTS = (dict, OrderedDict)
_SPLIT = {"backbone", "bottom_up", "branches", "network", "roi_heads", "transformer"}


@dataclass(frozen=True)
class Complexity:
    """What :func:`analyze` found.

    Attributes:
        size: height and width of the input that was counted, after padding.
        parts: cost per part, in the order of the modules.
        notes: what was assumed or left out.
    """

    size: tuple[int, int]
    parts: Mapping[str, Cost]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        """The sum over all parts."""
        return Cost.total(self.parts.values())

    def only(self, prefixes: Sequence[str]) -> Complexity:
        """The parts whose names start so.

        Raises:
            ConfigError: for a prefix of none.
        """
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in self.parts):
                hint = did_you_mean(prefix, self.parts)
                raise ConfigError(f"no part's name starts with {prefix!r}; there are {', '.join(self.parts)}.{hint}")
        return replace(self, parts={n: c for n, c in self.parts.items() if n.startswith(tuple(prefixes))})


def natural_size(model: nn.Module) -> int:
    """Pixels per side at which a model's published cost is stated.

    The size of a segmentor's training, the highest resolution of a PIIP, the image size of a timm classifier, or 1024.
    """
    for module in model.modules():
        if isinstance(module, SemanticSegmentor) and module.train_size:
            return module.train_size
        if isinstance(module, BranchPyramid):
            return module.resolutions[0]
        if isinstance(module, ImageClassifier) and hasattr(module.network, "pretrained_cfg"):
            return module.network.pretrained_cfg["input_size"][-1]
    return 1024


def analyze(model: nn.Module, size: tuple[int, int] | None = None) -> Complexity:
    """Counts the true cost of a detector's or a backbone's inference.

    Of a Mask R-CNN (any RPN with Detectron2's standard or cascaded heads) all layers are counted: the box head on as
    many proposals and the mask head on as many detections as the model keeps at most. So are those of a RetinaNet,
    a DINO and a segmentor. Of other detectors only the backbone is, and the notes say so.

    Args:
        model: on any device; it stays as it is.
        size: height and width of the image, which gets padded as in training and inference; square with
            :func:`natural_size` by default.

    Raises:
        ConfigError: for a size that the model cannot take.
    """
    height, width = size or (natural_size(model),) * 2
    if min(height, width) < 1:
        raise ConfigError(f"the input size {height} x {width} must be positive.")
    model = _meta_copy(model).eval()
    divisor = getattr(getattr(model, "backbone", model), "size_divisibility", 0) or 1
    height, width = (math.ceil(side / divisor) * divisor for side in (height, width))

    inference, seen = _Inference(model), _count_at_modules(model)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), QuickShapes(PRODUCTS), counter, QuickShapes(UNCOUNTED):  # what is innermost comes first
        inference(torch.empty(1, 3, height, width, device="meta"))
    # Names start with those of _Inference and of the model in it.
    macs = {tuple(name.split(".")[2:]): sum(n.values()) // 2 for name, n in counter.get_flop_counts().items()}
    parts: dict[str, Cost] = {}
    for label, path in _parts(model):
        params = sum(p.numel() for p in model.get_submodule(path).parameters())
        cost = Cost(params, _executed_under(path, macs)) + _sum_under(path, seen)
        parts[label] = parts.get(label, Cost()) + cost

    whole = Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2) + _sum_under("", seen)
    known = Cost.total(parts.values())
    parts["other"] = Cost(*(getattr(whole, f) - getattr(known, f) for f in ("params", "macs", "activations")))
    parts = {label: cost for label, cost in parts.items() if cost != Cost()}
    idle = [label for label, cost in parts.items() if not cost.macs]
    notes = [f"{', '.join(idle)}: parameters only"] if idle else []
    return Complexity((height, width), parts, (*inference.notes, *notes))


class _Inference(nn.Module):
    """A model's inference without the steps that depend on the picture: proposals and detections are counted, not made.

    One module around everything, so that FlopCounterMode names all modules from the same root.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.notes: list[str] = []

    def forward(self, image: Tensor) -> None:
        model = self.model
        features = (model.network if isinstance(model, ImageClassifier) else getattr(model, "backbone", model))(image)
        if isinstance(model, DINO):
            padding = torch.zeros(len(image), *image.shape[-2:], dtype=torch.bool, device=image.device)
            queries = model.transformer([features[name] for name in model.in_features], padding).proposal_boxes
            self.notes.append(f"decoder: {queries.shape[1]} queries")
        if isinstance(model, DenseDetector):
            model.head([features[name] for name in model.head_in_features])
        if hasattr(model, "sem_seg_head"):
            model.sem_seg_head(features)
        if not isinstance(model, GeneralizedRCNN):
            return
        proposals, heads = model.proposal_generator, model.roi_heads
        if not isinstance(proposals, RPN) or not isinstance(heads, StandardROIHeads):
            return
        proposals.rpn_head([features[name] for name in proposals.in_features])

        channels = features[heads.box_in_features[0]].shape[1]
        count = proposals.post_nms_topk[False]
        # A cascade has one head and one predictor per stage.
        for head, predictor in zip(_listed(heads.box_head), _listed(heads.box_predictor), strict=True):
            predictor(head(image.new_empty(count, channels, *heads.box_pooler.output_size)))
        self.notes.append(f"box head: {count} proposals")
        if heads.mask_on:
            count = _listed(heads.box_predictor)[-1].test_topk_per_image
            heads.mask_head.layers(image.new_empty(count, channels, *heads.mask_pooler.output_size))
            self.notes.append(f"mask head: {count} detections")


def _listed(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _meta_copy(model: nn.Module) -> nn.Module:
    """The same modules around float32 meta tensors without gradients; the model's own weights are not touched."""

    def on_meta(t: Tensor) -> Tensor:
        return t.detach().to("meta", torch.float32 if t.is_floating_point() else t.dtype)

    # What deepcopy finds in its memo it takes as already copied; ten empty dicts in each module take it the longest.
    memo: dict[int, Any] = {id(b): on_meta(b) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(on_meta(p), requires_grad=False) for p in model.parameters()}
    memo |= {id(d): type(d)() for m in model.modules() for d in vars(m).values() if type(d) in _DICTS and not d}
    model = copy.deepcopy(model, memo)
    for module in model.modules():
        if isinstance(module, Branch):
            # The counter notices a module when it is called; a branch is used by its methods alone.
            embed, run = module.embed, module.run
            module.forward = lambda method, *args: method(*args)
            module.embed, module.run = partial(module, embed), partial(module, run)
    return model


def _count_at_modules(model: nn.Module) -> dict[str, Cost]:
    """Adds hooks that count activations; returns where they put what they count, by module."""
    seen: dict[str, Cost] = {}

    def add(path: str, cost: Cost) -> None:
        seen[path] = seen.get(path, Cost()) + cost

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            module.register_forward_hook(lambda m, args, out, path=path: add(path, Cost(activations=out.numel())))
    return seen


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, str]]:
    """Label and path of every part of a model, in the order of the data."""
    # An FPN, or another neck, holds the network below it as its last child.
    for name, child in sorted(module.named_children(), key=lambda item: item[0] != "bottom_up"):
        below = f"{path}.{name}" if path else name
        if name in _SPLIT:
            yield from _parts(child, below)
        elif hasattr(module, "bottom_up"):
            yield below.removesuffix(name) + ("fpn" if isinstance(module, FPN) else "neck"), below
        else:
            yield below, below


def _executed_under(path: str, macs: Mapping[tuple[str, ...], int]) -> int:
    """What the outermost called modules at or below a path count; the path's own may be used by its parts alone."""
    root, last, total = tuple(path.split(".")), None, 0
    for name in sorted(macs):
        if name[: len(root)] == root and (last is None or name[: len(last)] != last):
            total, last = total + macs[name], name
    return total


def _sum_under(path: str, seen: Mapping[str, Cost]) -> Cost:
    return Cost.total(cost for name, cost in seen.items() if not path or f"{name}.".startswith(f"{path}."))
