"""Whether a checkpoint belongs to a model, and what the released configs leave open about it."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping

from timm.layers import DropPath
from torch import Tensor, nn

from ..errors import CheckpointError
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.branches import Branch, InternViTBranch, ViTBranch
from ..modeling.piip import PIIP
from ..modeling.single_branch import SingleBranch
from .describe import BranchLook, branches_of, describe, interactions_of, looks_of
from .official import official_names

__all__ = ["PLAIN", "adapt_to_checkpoint", "alike", "check_belongs"]

logger = logging.getLogger(__name__)

# Families of transformers that differ in little but the names of some tensors.
PLAIN = frozenset({"ViT", "DeiT kind", "InternViT kind"})

_RELEASED_BRANCH = re.compile(r"(?:^|\.)branch\d+\.")


def check_belongs(module: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint with other branches or interactions than a model's.

    What :func:`adapt_to_checkpoint` evens out is no difference. A model without branches takes any
    checkpoint.

    Args:
        own: the model's tensors, by released names where the checkpoint has them, else by ours.

    Raises:
        CheckpointError: when number, family, width or depth of the branches differ, or the kind of the interactions.
    """
    model = _backbone(module)
    if model is None:
        return
    theirs, ours = looks_of(tensors), looks_of(own)
    same = bool(branches_of(tensors)) == bool(branches_of(own)) and len(theirs) == len(ours)
    if not (same and all(map(alike, theirs, ours))) and _replacement(model, tensors) is None:
        raise CheckpointError(
            f"the checkpoint looks like {describe(tensors)}, the model is {describe(own)}; "
            "choose the config that belongs to the checkpoint."
        )
    held, wanted = interactions_of(tensors), interactions_of(own)
    if held != wanted:
        raise CheckpointError(
            f"the checkpoint has {held}, the model {wanted}; choose the config that belongs to the checkpoint."
        )


def alike(one: BranchLook | None, other: BranchLook | None) -> bool:
    """Whether two networks may be of one architecture."""
    if one is None or other is None:
        return one is other
    if (one.width, one.depth) != (other.width, other.depth):
        return False
    # With a class token, or without positions, the kinds of plain transformers look the same.
    families = {one.family, other.family}
    return len(families) == 1 or ("ViT" in families and families <= PLAIN)


def adapt_to_checkpoint(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a PIIP the finest branch that a checkpoint has, by either names, where the released models vary in it.

    * The released four-branch class builds its fourth branch from the third one's settings; a checkpoint tells by
      the width whether it holds that one or the configured one.
    * The small branch beside DINOv2's larger ones may be DINOv2 too (InternViT kind, whose position embedding has a
      leading row) or DeiT III (DeiT kind, without).

    A model whose other branches differ from the checkpoint's is left as it is. Call this before an optimizer takes the
    parameters.
    """
    model = _backbone(module)
    branch = None if model is None else _replacement(model, tensors)
    if branch is None:
        return
    finest = model.branches[0]
    if branch.out_channels[0] != finest.out_channels[0]:
        logger.warning(
            "The checkpoint's finest branch is %d wide, as the released code builds it from its neighbour's settings; "
            "the model's own (%d wide) is replaced by one like it.",
            branch.out_channels[0],
            finest.out_channels[0],
        )
    else:
        logger.warning(
            "The checkpoint's finest branch is of the kind %s (its position embedding has %d rows); the model's own, a "
            "%s, is replaced by one.",
            type(branch).__name__,
            branch.pos_embed.shape[1],
            type(finest).__name__,
        )
    model.replace_branch(0, branch)


def _backbone(module: nn.Module) -> BranchPyramid | SingleBranch | None:
    return next((m for m in module.modules() if isinstance(m, BranchPyramid | SingleBranch)), None)


def _replacement(model: BranchPyramid | SingleBranch, tensors: Mapping[str, Tensor]) -> Branch | None:
    """The finest branch that a checkpoint has instead of the model's; None where there is no reason to exchange it."""
    held = branches_of(tensors)
    if not isinstance(model, PIIP) or len(model.branches) != len(held) or len(held) < 2:
        return None
    own = model.state_dict()
    if any(_RELEASED_BRANCH.search(name) for name in tensors):
        own = {official: own[name] for name, official in official_names(model).items()}
    theirs, ours = looks_of(tensors), looks_of(own)
    if not all(map(alike, theirs[1:], ours[1:])) or theirs[0] is None or ours[0] is None:
        return None
    finest, second = model.branches[0], model.branches[1]
    if len(held) == 4 and theirs[0].width != ours[0].width:
        same_depth = finest.num_blocks == second.num_blocks
        return copy.deepcopy(second) if same_depth and alike(theirs[0], ours[1]) else None
    kinds = {theirs[0].family, ours[0].family}
    swappable = kinds == PLAIN - {"ViT"} and theirs[0].width == ours[0].width and theirs[0].depth == ours[0].depth
    return _other_kind(finest, held[0]) if swappable else None


def _other_kind(branch: Branch, tensors: Mapping[str, Tensor]) -> Branch | None:
    """The branch with a leading row of the position embedding, or without; None where there is none such."""
    kind = {ViTBranch: InternViTBranch, InternViTBranch: ViTBranch}.get(type(branch))
    rows = tensors["pos_embed"].shape[1]
    grid = math.isqrt(rows)
    first = tensors.get("blocks.0.mlp.fc1.bias")
    if kind is None or first is None or rows - grid**2 != kind.leading_positions:
        return None
    width, depth, hidden = branch.out_channels[0], branch.num_blocks, first.shape[0]
    approximate = getattr(branch.blocks[0].mlp.act, "approximate", "none")
    return kind(
        width,
        depth,
        branch.num_heads,
        mlp_ratio=hidden / width,
        patch_size=branch.embed_stride,
        pretrain_img_size=grid * branch.embed_stride,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        window_size=branch.window_sizes,
        drop_path_rate=max((m.drop_prob for m in branch.blocks.modules() if isinstance(m, DropPath)), default=0.0),
        activation="gelu_tanh" if approximate == "tanh" else "gelu",
        use_act_checkpoint=branch.use_act_checkpoint,
    )
