"""How time and memory of PIIP and LSNet grow with resolution, number of branches and batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..modeling import LSNet
from ..modeling.lsnet import VARIANTS
from .forms import Form, measure_forms
from .peers import make_piip, randomise
from .records import Row
from .timing import Settings

__all__ = ["CASES", "ScalingCase", "exponent"]

# Shares of the highest resolution: TSB 1568/1120/672 and so on.
_SHARES = {1: (1.0,), 2: (1.0, 5 / 7), 3: (1.0, 5 / 7, 3 / 7), 4: (1.0, 5 / 7, 3 / 7, 2 / 7)}


@dataclass(frozen=True)
class ScalingCase:
    """Inference of one network at several sizes.

    Attributes:
        model: ``"LSNet-T"``, or ``"PIIP"`` of the first letters of TSBL.
        by: ``"resolution"``, ``"branches"`` or ``"batch"``.
        values: pixels per side, numbers of branches or of images.
        side: pixels per side where the resolution stays.
    """

    model: str
    by: str
    values: tuple[int, ...]
    side: int = 448

    @property
    def name(self) -> str:
        fixed = "" if self.by == "resolution" else f" at {self.side}"
        return f"{self.model}{fixed} by {self.by}"

    @property
    def quick(self) -> bool:
        """None is among the few cases of continuous integration."""
        return False

    def measure(self, settings: Settings) -> list[Row]:
        """A row per size; what it was is ``numbers["x"]``, and of a resolution the pixels are."""
        torch.manual_seed(0)
        forms = {f"{self.by} {value}": self._form(value, settings) for value in self.values}
        rows = measure_forms("scale", self.name, forms, settings.at_most(2))
        for row, value in zip(rows, self.values, strict=True):
            row.numbers["x"] = value**2 if self.by == "resolution" else value
        return rows

    def _form(self, value: int, settings: Settings) -> Form:
        side = value if self.by == "resolution" else self.side
        image = torch.randn(value if self.by == "batch" else 1, 3, side, side).to(settings.device, settings.dtype)
        model = randomise(self._model(value if self.by == "branches" else 3, side))
        return Form(model.eval().to(settings.device, settings.dtype), image)

    def _model(self, branches: int, side: int) -> nn.Module:
        if self.model == "LSNet-T":
            return LSNet(**VARIANTS["t"])
        return make_piip("TSBL"[:branches], [16 * round(share * side / 16) for share in _SHARES[branches]])


CASES = [
    ScalingCase("PIIP-TSB", "resolution", (448, 896, 1792)),
    ScalingCase("LSNet-T", "resolution", (448, 896, 1344, 1792)),
    ScalingCase("PIIP", "branches", (1, 2, 3, 4)),
    ScalingCase("PIIP-TSB", "batch", (1, 2, 4), side=224),
    ScalingCase("LSNet-T", "batch", (1, 4, 16), side=224),
]


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the power of x that fits y best, by least squares of the logarithms."""
    u, v = ([math.log(value) for value in values] for values in (x, y))
    mu, mv = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mu) * (b - mv) for a, b in zip(u, v, strict=True)) / sum((a - mu) ** 2 for a in u)
