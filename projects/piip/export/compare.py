"""Whether an exported file computes what the model does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["TOLERANCE", "compare"]

# Of the largest absolute value of an output.
TOLERANCE = 1e-4


def compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], size: tuple[int, int]) -> float:
    """The largest error of a file's answer relative to the largest absolute value of the same output.

    Detections are compared pair by pair. Rounding can decide between two of nearly the same score or at a threshold,
    so one in fifty, and always one, may lack a partner.

    Args:
        wanted: what the model gives.
        given: what the file gives.
        size: height and width of the image.

    Raises:
        ConfigError: when an output is missing, has another shape, or is further off than :data:`TOLERANCE`.
    """
    if list(wanted) != list(given):
        raise ConfigError(f"the exported file has the outputs {list(given)}, the model {list(wanted)}.")
    if "boxes" in wanted:
        wanted, given = _paired(wanted, given, size)
    worst = 0.0
    for name, right in wanted.items():
        if given[name].shape != right.shape:
            raise ConfigError(
                f"output {name!r} of the exported file has shape {tuple(given[name].shape)} for an image of "
                f"{size[0]} x {size[1]}, and that of the model {tuple(right.shape)}."
            )
        if right.numel():
            difference = (given[name].double() - right.double()).abs().max()
            error = float(difference / right.double().abs().max().clamp(min=1e-12))
            if not error <= TOLERANCE:
                raise ConfigError(
                    f"output {name!r} of the exported file is off by {error:.1e} of its largest value for an image of "
                    f"{size[0]} x {size[1]}; {TOLERANCE:.0e} is allowed, so the file is not kept."
                )
            worst = max(worst, error)
    return worst


def _paired(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[dict, dict]:
    """The detections of both that belong together, in the same order."""
    far = torch.cdist(wanted["boxes"].double(), given["boxes"].double(), p=float("inf")) / max(size)
    far = far.maximum((wanted["scores"][:, None] - given["scores"]).abs())
    far = far.masked_fill(wanted["classes"][:, None] != given["classes"], torch.inf)
    near = far <= TOLERANCE
    alone = max((~near.any(dim=1)).sum(), (~near.any(dim=0)).sum())
    total = max(near.shape)
    if alone > max(1, total // 50):
        raise ConfigError(
            f"{int(alone)} of {total} detections of the exported file and of the model differ for an image of "
            f"{size[0]} x {size[1]}, so the file is not kept."
        )
    rows = near.any(dim=1).nonzero()[:, 0]
    columns = far[rows].argmin(dim=1) if rows.numel() else rows
    return {n: x[rows] for n, x in wanted.items()}, {n: x[columns] for n, x in given.items()}
