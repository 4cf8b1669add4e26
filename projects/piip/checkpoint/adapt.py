"""What the released configs leave open about a model, taken from the tensors of a checkpoint."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping

from timm.layers import DropPath
from torch import Tensor, nn

from ..modeling.branches import Branch, InternViTBranch, ViTBranch
from ..modeling.piip import PIIP
from .describe import branches_of

__all__ = ["adapt_to_checkpoint"]

logger = logging.getLogger(__name__)


def adapt_to_checkpoint(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a PIIP the finest branch that a checkpoint has, by either names, where the released models vary in it.

    * The released four-branch class builds its fourth branch from the third one's settings; a checkpoint tells by
      the width whether it holds that one or the configured one.
    * The small branch beside DINOv2's larger ones may be DINOv2 too (InternViT kind, whose position embedding has a
      leading row) or DeiT III (DeiT kind, without).

    Call this before an optimizer takes the parameters.
    """
    model = next((m for m in module.modules() if isinstance(m, PIIP)), None)
    held = branches_of(tensors)
    if model is None or len(model.branches) != len(held) or len(held) < 2:
        return
    finest, second = model.branches[0], model.branches[1]
    width = len(held[0].get("patch_embed.proj.bias", ()))
    if len(held) == 4 and width == second.out_channels[0] != finest.out_channels[0]:
        logger.warning(
            "The checkpoint's finest branch is %d wide, as the released code builds it from its neighbour's settings; "
            "the model's own (%d wide) is replaced by one like it.",
            width,
            finest.out_channels[0],
        )
        model.replace_branch(0, copy.deepcopy(second))
    elif other := _other_kind(finest, held[0]):
        logger.warning(
            "The checkpoint's finest branch is of the kind %s (its position embedding has %d rows); the model's own, a "
            "%s, is replaced by one.",
            type(other).__name__,
            other.pos_embed.shape[1],
            type(finest).__name__,
        )
        model.replace_branch(0, other)


def _other_kind(branch: Branch, tensors: Mapping[str, Tensor]) -> Branch | None:
    """The branch with a leading row of the position embedding, or without, where the checkpoint's is the other one."""
    kinds = {ViTBranch: InternViTBranch, InternViTBranch: ViTBranch}
    rows = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else 0
    grid = math.isqrt(rows)
    # Only plain blocks can be told by that alone: those with RMSNorm are of one kind.
    if type(branch) not in kinds or not grid or rows - grid**2 not in (0, 1) or "blocks.0.norm1.bias" not in tensors:
        return None
    kind = kinds[type(branch)]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if rows - grid**2 != kind.leading_positions or depth != branch.num_blocks:
        return None
    width, hidden = tensors["pos_embed"].shape[2], tensors["blocks.0.mlp.fc1.bias"].shape[0]
    if width != branch.out_channels[0]:
        return None
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
