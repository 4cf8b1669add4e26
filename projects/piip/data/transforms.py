"""Image sizes of the published recipes."""

from __future__ import annotations

__all__ = ["published_short_edge"]


def published_short_edge(long_edge: int) -> int:
    """The short edge that the published PIIP recipes pair with a long edge: the proportion 800 : 1333, rounded down.

    1120 -> 672, 1344 -> 806, 1568 -> 941, 1792 -> 1075 pixels.
    """
    return long_edge * 800 // 1333
