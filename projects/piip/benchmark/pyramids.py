"""PIIP's backbones: the published formulation, ours, and single ViTs, all with the FPN of a Mask R-CNN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.fuse import fuse
from .forms import Form, compiled, measure_forms, with_same_weights
from .peers import make_piip, make_vit, of_timm, randomise, with_fpn
from .records import Row
from .released import as_released
from .timing import Settings

__all__ = ["CASES", "PyramidCase"]


@dataclass(frozen=True)
class PyramidCase:
    """Inference of a batch of images by a PIIP and by single ViTs.

    Attributes:
        sizes: of the branches, highest resolution first, such as ``"TSB"``.
        resolutions: pixels per side of each.
        peers: sizes of the single ViTs.
        peer_side: pixels per side that these see.
        size: height and width of the image; a square of the highest resolution by default.
        rounds: at most so many turns: one takes seconds.
        brief: without the rows of ours before fusing, and of timm's ViT: what takes a minute per turn.
        batch: images.
        device: where alone it is measured; None for anywhere.
    """

    sizes: str
    resolutions: tuple[int, ...]
    peers: str = "B"
    peer_side: int = 1024
    size: tuple[int, int] | None = None
    rounds: int = 2
    brief: bool = False
    batch: int = 1
    device: str | None = None

    @property
    def model(self) -> str:
        """Name of the PIIP."""
        return f"PIIP-{self.sizes} {'/'.join(map(str, self.resolutions))}"

    @property
    def name(self) -> str:
        shown = f" B{self.batch}" if self.batch > 1 else ""
        shown += f", image {self.size[0]}x{self.size[1]}" if self.size else ""
        peers = " and ".join(f"ViT-{peer} {self.peer_side}" for peer in self.peers)
        return f"{self.model}{shown}" + (f" beside {peers}" if peers else "")

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return max(self.resolutions) < 300

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the published form, ours, ours fused and compiled; then of the single ViTs, fused: ours and timm's.

        On a GPU also of ours with a stream per branch, and with CUDA graphs.

        Raises:
            ArithmeticError: when two forms of one network do not agree.
        """
        torch.manual_seed(0)
        make = partial(_images, settings, self.batch)
        image = make(self.size or (self.resolutions[0],) * 2)
        model = _ready(with_fpn(make_piip(self.sizes, self.resolutions)), settings)
        fused = fuse(model)
        forms = {"published form": Form(as_released(model), image, model)}
        if not self.brief:
            forms["ours"] = Form(model, image, like="published form")
        forms["ours, fused"] = Form(fused, image, like="published form")
        if settings.compiled:
            forms["ours, fused, compiled"] = compiled(fused, image, "published form")
        if settings.device == "cuda":
            forms["ours, fused, branches overlap"] = Form(_overlapping(fused), image, fused, like="published form")
        if settings.device == "cuda" and settings.compiled:
            forms["ours, fused, CUDA graphs"] = compiled(fused, image, "published form", "reduce-overhead")
        for peer in self.peers:
            vit, name = _ready(with_fpn(make_vit(peer)), settings), f"ViT-{peer} {self.peer_side}"
            picture = make((self.peer_side,) * 2)
            plain = fuse(vit)
            forms[f"{name}, fused"] = Form(plain, picture)
            if settings.compiled:
                forms[f"{name}, fused, compiled"] = compiled(plain, picture, f"{name}, fused")
            if not self.brief:
                timms = fuse(of_timm(vit, self.peer_side).eval().to(settings.device, settings.dtype))
                forms[f"{name}, fused, timm"] = Form(timms, picture, like=f"{name}, fused")
        return measure_forms("backbones", self.name, forms, settings.at_most(self.rounds))


# Sizes of the papers, square as they count them; one as COCO's images are padded.
CASES = [
    PyramidCase("TS", (224, 160), peers="S", peer_side=224),
    PyramidCase("TSB", (1568, 1120, 672), rounds=3, brief=True),
    PyramidCase("TSB", (1120, 896, 448)),
    PyramidCase("TSB", (1568, 1120, 672), peers="", size=(1120, 1568), brief=True),
    PyramidCase("SBL", (1120, 672, 448), peers="L", brief=True),
    PyramidCase("SBL", (1568, 896, 672), peers="L", brief=True),
    PyramidCase("TSB", (1568, 1120, 672), brief=True, batch=8, device="cuda"),
    PyramidCase("SBL", (1568, 896, 672), peers="L", brief=True, batch=8, device="cuda"),
]


def _ready(model: nn.Module, settings: Settings) -> nn.Module:
    return randomise(model).eval().to(settings.device, settings.dtype)


def _overlapping(model: nn.Module) -> nn.Module:
    model = with_same_weights(model)
    for module in model.modules():
        if isinstance(module, BranchPyramid):
            module.overlap_branches = True
    return model


def _images(settings: Settings, batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size).to(settings.device, settings.dtype)
