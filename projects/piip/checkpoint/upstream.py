"""Names of pretrained files that come from other libraries."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

import timm
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..modeling.branches import BEiTBranch, Branch, ConvNeXtBranch, TimmBranch, UniPerceiverBranch

__all__ = ["upstream_name", "upstream_tensors"]

# transformers' ConvNeXt, alone or below a classifier; released checkpoints have it under another name.
_CONVNEXT = re.compile(r"^(?:convnext\.)?(?=(?:embeddings|encoder)\.(?:patch_embeddings|layernorm|stages)\.)")


# torch's own attention, which Uni-Perceiver's is like, keeps the weights of its projection without a layer around.
_IN_PROJ = re.compile(r"\.self_attn\.in_proj_(?=weight$|bias$)")

# Some of BEiT's pretrainings have one table of relative positions for all blocks.
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"


def upstream_name(name: str) -> str:
    """The released name of an entry of a file of another library; any other name as it is."""
    return _IN_PROJ.sub(".self_attn.in_proj.", _CONVNEXT.sub("convnext_model.", name))


def upstream_tensors(branch: Branch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a pretrained network by the names that the branch's official names are about.

    A ConvNeXt of ``transformers`` gets the names it has in released PIIP checkpoints, and a table of relative positions
    that all blocks of a BEiT share is given to each of them. What a
    :class:`~piip.modeling.branches.TimmBranch` is to load goes through timm's own rules for files with the names of an
    original release.

    Raises:
        CheckpointError: when timm's rules cannot make anything of the file.
    """
    if isinstance(branch, BEiTBranch) and _SHARED_TABLE in tensors:
        shared = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(branch.num_blocks)]
        rest = {name: tensor for name, tensor in tensors.items() if name != _SHARED_TABLE}
        return dict.fromkeys(shared, tensors[_SHARED_TABLE]) | rest
    if isinstance(branch, ConvNeXtBranch | UniPerceiverBranch):
        return {upstream_name(name): tensor for name, tensor in tensors.items()}
    if not isinstance(branch, TimmBranch) or {branch.timm_name(n) for n in branch.state_dict()} <= tensors.keys():
        return dict(tensors)
    family = sys.modules[timm.model_entrypoint(branch.model_name.split(".")[0]).__module__]
    rules = getattr(family, "checkpoint_filter_fn", None)
    if rules is None:
        return dict(tensors)
    with torch.device("meta"):
        model = branch.make_model()
    try:
        return dict(rules(dict(tensors), model))
    except Exception as error:  # rules may stumble over anything in a file that they are not for
        raise CheckpointError(
            f"timm's rules for {branch.model_name} cannot read a file of {', '.join(list(tensors)[:3])}, ... "
            f"({type(error).__name__}: {error}); choose weights of that network."
        ) from error
