"""Fitting released weights to a model: what every loader of LSNet has to do."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError

__all__ = ["INDEX", "absent_branches", "filter_weights", "resize_bias_table"]

logger = logging.getLogger(__name__)

# Ends the name of a buffer that released models have, and ours compute.
INDEX = ".attention_bias_idxs"

# Tells the sizes apart by its width.
_STEM = "patch_embed.4.c.weight"


def resize_bias_table(table: Tensor, length: int) -> Tensor:
    """Fits a flat table of attention biases to another design grid, bicubically, as the released detectors do.

    Shape:
        (heads, R * R) -> (heads, length)

    Raises:
        CheckpointError: when one of the lengths is no square number.
    """
    old, new = math.isqrt(table.shape[1]), math.isqrt(length)
    if old**2 != table.shape[1] or new**2 != length:
        raise CheckpointError(
            f"a table of {table.shape[1]} attention biases cannot be resized to {length}; both must be square numbers."
        )
    if old == new:
        return table
    grid = F.interpolate(table.unflatten(1, (old, old))[None].float(), (new, new), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).to(table.dtype)


def absent_branches(tensors: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Neutral values of the 1x1 branches of depthwise convolutions that a file does not have.

    LSNet-B may have been trained without them: the sizes in its logs suggest so.

    Args:
        tensors: the file's.
        known: names of the model's tensors, as the file would have them.
    """
    neutral = {}
    for name in known:
        block, branch, rest = name.partition(".mixer.conv1.")
        if branch and name not in tensors and (like := tensors.get(f"{block}.mixer.conv.c.weight")) is not None:
            shape = {"c.weight": (len(like), 1, 1, 1), "bn.num_batches_tracked": ()}.get(rest, (len(like),))
            value = torch.ones if rest == "bn.running_var" else torch.zeros
            neutral[name] = value(shape, dtype=torch.long if rest == "bn.num_batches_tracked" else like.dtype)
    if neutral:
        logger.warning(
            "The checkpoint lacks tensors of the 1x1 branches of %d depthwise convolutions (%s first); they are set so "
            "that these branches add nothing.",
            len({name.partition(".mixer.")[0] for name in neutral}),
            next(iter(neutral)),
        )
    return neutral


def filter_weights(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Fits a released file to a classifier, for timm's loader.

    Indices are dropped, tables of attention biases resized to the model's ``img_size``, and absent branches completed.

    Raises:
        CheckpointError: when the file is of another size, or only one of both has a distillation head.
    """
    for key in ("state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    own = model.state_dict()
    tensors = {name.removeprefix("module."): tensor for name, tensor in checkpoint.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(INDEX)}
    _check_kind(tensors, own)
    for name in tensors.keys() & own.keys():
        if name.endswith("attention_biases"):
            tensors[name] = resize_bias_table(tensors[name], own[name].shape[1])
    return tensors | absent_branches(tensors, own)


def _check_kind(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    widths = [len(names[_STEM]) for names in (tensors, own) if _STEM in names]
    if len(set(widths)) > 1:
        raise CheckpointError(
            f"the weights are of an LSNet that starts {widths[0]} wide, and the model starts {widths[1]} wide; choose "
            "lsnet_t, lsnet_s or lsnet_b after the file."
        )
    theirs, ours = ({name.split(".")[0] for name in names if name.startswith("head")} for names in (tensors, own))
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f"the weights have {_and(theirs)}, and the model has {_and(ours)}; choose the one of lsnet_* and "
            "lsnet_*_distill that belongs to the file."
        )


def _and(names: Collection[str]) -> str:
    return " and ".join(sorted(names))
