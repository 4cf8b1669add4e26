"""The three numbers that a part of a model costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """What a part of a model costs for one image.

    Attributes:
        params: parameters.
        macs: multiply-adds, each counted once.
        activations: elements of the outputs of linear layers and convolutions; 0 where they are not counted.
    """

    params: int = 0
    macs: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.activations + other.activations)

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """The sum of several costs."""
        return sum(costs, cls())
