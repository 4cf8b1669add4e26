"""What is exported of a model: a module from an image to named tensors, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis import natural_size
from ..errors import ConfigError
from ..modeling.backbone import PyramidBackbone
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.fuse import fuse
from ..modeling.lsnet.body import STRIDES, LSNetBody
from ..modeling.meta_arch.image_classifier import ImageClassifier
from ..modeling.single_branch import SingleBranch
from .detectors import detector_of

__all__ = ["PARTS", "Network", "network_of"]

PARTS = ("backbone", "model")

Answer = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """What is exported.

    Attributes:
        module: image (1, 3, H, W) -> tensors by name, with the layers folded that follow each other.
        reference: computes the same by the model itself.
        stride: what H and W must be multiples of.
        smallest: the smallest side.
        coarsest: pixels that a side has to exceed where it is not fixed, so that nothing in the network is a single
            cell or window: a stride, or the side of a window.
        size: H and W where nothing else is asked for.
        raw: whether the image has pixels of 0 to 255, or must be normalised.
        info: what a user of the file has to know, of plain values.
    """

    module: nn.Module
    reference: Callable[[Tensor], Answer]
    stride: int
    smallest: int
    coarsest: int
    size: tuple[int, int]
    raw: bool
    info: dict[str, Any]

    def smallest_side(self, dynamic: bool) -> int:
        """The smallest side of images for a file, of any size (``dynamic``) or fixed.

        A map of one cell, or one window, would be taken for one that never has more.
        """
        return max(self.smallest, (self.coarsest // self.stride + 1) * self.stride) if dynamic else self.smallest

    def check_size(self, size: tuple[int, int], dynamic: bool) -> None:
        """Refuses what the network cannot take.

        Raises:
            ConfigError: for a side that is too small or no multiple of the stride.
        """
        smallest = self.smallest_side(dynamic)
        if any(side < smallest or side % self.stride for side in size):
            raise ConfigError(
                f"the size {size[0]} x {size[1]} does not fit the model{' with --dynamic' if dynamic else ''}: height "
                f"and width must be multiples of {self.stride} from {smallest} on."
            )

    def image(self, size: tuple[int, int], seed: int) -> Tensor:
        """A picture of noise in coarse and fine cells, (1, 3, H, W)."""
        random = torch.Generator().manual_seed(seed)
        cells = [torch.randn(1, 3, -(-size[0] // n), -(-size[1] // n), generator=random) for n in (1, 8, 32)]
        image = sum(nn.functional.interpolate(c, size=size, mode="nearest") for c in cells)
        return image.mul(40).add(128).clamp(0, 255) if self.raw else image


def network_of(model: nn.Module, part: str = "backbone") -> Network:
    """What is to be exported of a model.

    Args:
        model: a detector, segmentor or classifier with its weights, on the CPU; it is put into evaluation mode.
        part: ``"backbone"``, the network that makes the maps (with its FPN), of a classifier the logits; or
            ``"model"``, a whole detector.

    Raises:
        ConfigError: for an unknown part, or a model that has none such.
    """
    if part not in PARTS:
        raise ConfigError(f"there is no part {part!r} to export; choose {' or '.join(PARTS)}.")
    model = model.eval().requires_grad_(False)
    classifier = isinstance(model, ImageClassifier)
    backbone = model.network if classifier else getattr(model, "backbone", None)
    if backbone is None:
        raise ConfigError(f"a {type(model).__name__} has no backbone to export.")
    whole = part == "model" and not classifier
    fused = _fused(model)
    if whole:
        module, reference = detector_of(fused), _Detections(model)
    else:
        network = fused.network if classifier else fused.backbone
        module, reference = _Named(network), _Named(backbone)
    stride, smallest, coarsest = _sides(backbone)
    side = math.ceil(max(natural_size(model), smallest) / stride) * stride
    info = {
        "part": "model" if whole else "network" if classifier else "backbone",
        "input": "pixels from 0 to 255" if whole else "(pixels - pixel_mean) / pixel_std, of pixels from 0 to 255",
        "channels": getattr(model, "input_format", None) or "BGR",
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "stride": stride,
    }
    return Network(module, reference, stride, smallest, coarsest, (side, side), whole, info)


class _Named(nn.Module):
    """Gives a network's outputs names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Answer:
        out = self.network(image)
        return {"logits": out} if isinstance(out, Tensor) else out


class _Detections:
    """A detector's own answer, named as in the exported one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, image: Tensor) -> Answer:
        sample = [{"image": image[0], "height": image.shape[2], "width": image.shape[3]}]
        if hasattr(self.model, "roi_heads"):
            # Masks are pasted into the image later.
            found = self.model.inference(sample, do_postprocess=False)[0]
            found = found[found.pred_boxes.nonempty()]
        else:
            found = self.model(sample)[0]["instances"]
        answer = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}
        return {**answer, "masks": found.pred_masks[:, 0]} if found.has("pred_masks") else answer


def _fused(model: nn.Module) -> nn.Module:
    try:
        return fuse(model)
    except ConfigError:  # nothing to fold
        return model


def _sides(backbone: nn.Module) -> tuple[int, int, int]:
    """What the sides of an image must be multiples of, the smallest one, and :attr:`Network.coarsest`."""
    strides = [getattr(backbone, "size_divisibility", 0) or 1]
    strides += [m.input_stride for m in backbone.modules() if isinstance(m, BranchPyramid | PyramidBackbone)]
    stride = math.lcm(*strides)
    maps = [STRIDES[len(m.dims) - 1] for m in backbone.modules() if isinstance(m, LSNetBody)]
    smallest = math.ceil(max([stride, *maps]) / stride) * stride
    if hasattr(backbone, "output_shape"):
        maps += [shape.stride for shape in backbone.output_shape().values()]
    for module in backbone.modules():
        if isinstance(module, BranchPyramid):
            parts = zip(module.branches, [module.resolutions[0] / r for r in module.resolutions], strict=True)
        else:
            parts = [(module.branch, 1)] if isinstance(module, SingleBranch) else []
        for branch, pixels in parts:
            cells = max(1, *getattr(branch, "window_sizes", [1]))
            maps.append(math.ceil((cells + 1) * max(branch.strides) * pixels) - 1)
    return stride, smallest, max([1, *maps])
