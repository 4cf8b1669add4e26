"""Names of the released PIIP checkpoints, and how our modules map to them.

The one place that knows the released branch order (branch 1 is the largest model) beside ours (finest first).
Source: key tables of the released models; Detectron2 and mmdet heads share weight layouts, so renaming is enough.
"""

from __future__ import annotations

import re

from torch import nn

from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.branches import (
    BEiTBranch,
    Branch,
    ConvNeXtBranch,
    InternViTBranch,
    TimmBranch,
    UniPerceiverBranch,
    ViTBranch,
)
from ..modeling.interaction import InteractionUnit
from ..modeling.lsnet import LSNet, LSNetBody, LSNetClassifier
from ..modeling.piip_classifier import PIIPClassifier
from ..modeling.single_branch import SingleBranch
from .official_lsnet import HEAD_RULES
from .official_sem_seg import UPERNET_RULES

__all__ = ["UNUSED", "official_names"]

# What released checkpoints carry without any use, and our models do not have.
UNUSED = re.compile(r"(?:^|\.)convnext_model\.layernorm\.|\.attn\.relative_position_index$|\.attention_bias_idxs$")

# One entry per branch family; a family without its own has the rules of the class that it derives from.
_BRANCHES: dict[type[Branch], list] = {
    ViTBranch: [(r"\.ls([12])\.gamma$", r".gamma_\1")],
    InternViTBranch: [],
    BEiTBranch: [(r"\.ls([12])\.gamma$", r".gamma_\1")],
    UniPerceiverBranch: [
        (r"^patch_embed\.proj\.", "visual_embed.patch_embed.proj."),
        (r"^(spatial|temporal)_pos_embed$", r"visual_embed.patch_embed.\1_pos_embed.weight"),
        (r"^embed_norm\.", "visual_embed.embeddings_norm."),
        *(
            (rf"^blocks\.(\d+)\.{ours}$", rf"layers.\1.{theirs}")
            for ours, theirs in (
                (r"norm([12])\.(\w+)", r"norm\2.\3"),
                (r"attn\.qkv\.(\w+)", r"self_attn.in_proj.\2"),
                (r"attn\.proj\.(\w+)", r"self_attn.out_proj.\2"),
                (r"mlp\.fc([12])\.(\w+)", r"linear\2.\3"),
                (r"ls([12])\.gamma", r"gamma_\2"),
            )
        ),
    ],
    ConvNeXtBranch: [
        (r"^stem\.0\.", "convnext_model.embeddings.patch_embeddings."),
        (r"^stem\.1\.", "convnext_model.embeddings.layernorm."),
        (r"^stages\.(\d+)\.downsample\.", r"convnext_model.encoder.stages.\1.downsampling_layer."),
        *(
            (rf"^stages\.(\d+)\.blocks\.(\d+)\.{ours}\b", rf"convnext_model.encoder.stages.\1.layers.\2.{theirs}")
            for ours, theirs in (
                ("conv_dw", "dwconv"),
                ("norm", "layernorm"),
                (r"mlp\.fc1", "pwconv1"),
                (r"mlp\.fc2", "pwconv2"),
                ("gamma", "layer_scale_parameter"),
            )
        ),
    ],
}
_INJECTOR = [
    (r"^gamma_attn$", "ca_gamma"),
    (r"^gamma_ffn$", "cffn_gamma"),
    (r"^ffn\.dwconv\.", "ffn.dwconv.dwconv."),
]
_MULTI_SCALE = [(r"^levels\.c2\.", "{0}1."), (r"^levels\.c3\.", "{0}2.")]
_DETECTOR = [
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"neck.lateral_convs.{int(m[1]) - 2}.conv."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"neck.fpn_convs.{int(m[1]) - 2}.conv."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    # A cascade has one box head per stage, with its number.
    (r"^roi_heads\.box_head\.(\d\.)?fc(\d)\.", lambda m: f"roi_head.bbox_head.{m[1] or ''}shared_fcs.{int(m[2]) - 1}."),
    (r"^roi_heads\.box_predictor\.(\d\.)?cls_score\.", lambda m: f"roi_head.bbox_head.{m[1] or ''}fc_cls."),
    (r"^roi_heads\.box_predictor\.(\d\.)?bbox_pred\.", lambda m: f"roi_head.bbox_head.{m[1] or ''}fc_reg."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"roi_head.mask_head.convs.{int(m[1]) - 1}.conv."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_head.mask_head.conv_logits."),
]
_DINO = [
    (r"^backbone\.lateral\.(\d)\.norm\.", r"neck.convs.\1.gn."),
    (r"^backbone\.lateral\.(\d)\.", r"neck.convs.\1.conv."),
    (r"^backbone\.extra\.(\d)\.norm\.", r"neck.extra_convs.\1.gn."),
    (r"^backbone\.extra\.(\d)\.", r"neck.extra_convs.\1.conv."),
    (r"^denoising\.class_embed\.", "bbox_head.label_embedding."),
    *(
        (rf"^transformer\.{ours}", rf"bbox_head.{theirs}")
        for ours, theirs in (
            (r"class_heads\.", "cls_branches."),
            (r"box_heads\.", "reg_branches."),
            (r"level_embed$", "transformer.level_embeds"),
            (r"query_embed\.", "transformer.query_embed."),
            (r"proposal_proj\.", "transformer.enc_output."),
            (r"proposal_norm\.", "transformer.enc_output_norm."),
            (r"box_position_proj\.", "transformer.decoder.ref_point_head."),
            (r"decoder_norm\.", "transformer.decoder.norm."),
        )
    ),
    *(
        (rf"^transformer\.({part})\.(\d+)\.{ours}\.", rf"bbox_head.transformer.\1.layers.\2.{theirs}.")
        for part, ours, theirs in (
            ("encoder", "self_attn", "attentions.0"),
            ("decoder", "self_attn", "attentions.0.attn"),
            ("decoder", "cross_attn", "attentions.1"),
            ("encoder|decoder", r"ffn\.0", "ffns.0.layers.0.0"),
            ("encoder|decoder", r"ffn\.2", "ffns.0.layers.1"),
            ("encoder|decoder", "norm1", "norms.0"),
            ("encoder|decoder", "norm2", "norms.1"),
            ("decoder", "norm3", "norms.2"),
        )
    ),
]


def official_names(module: nn.Module) -> dict[str, str]:
    """The released name of every entry of a module's state dict.

    Args:
        module: a PIIP, SingleBranch or LSNet backbone, a classifier, a branch, an interaction unit, or a model that
            contains one of the backbones or classifiers.

    Returns:
        our name -> released name. Buffers that released models do not have (pixel statistics, anchors) are left out.

    Raises:
        TypeError: when no released model corresponds to the module.
    """
    if isinstance(module, BranchPyramid):
        return {name: _piip_name(name, module) for name in module.state_dict()}
    if isinstance(module, SingleBranch):
        return {name: _single_branch_name(name, module) for name in module.state_dict()}
    if isinstance(module, InteractionUnit):
        return {name: _unit_name(name) for name in module.state_dict()}
    if isinstance(module, Branch):
        return {name: _branch_name(name, module) for name in module.state_dict()}
    if isinstance(module, LSNetBody):
        return {name: name for name in module.state_dict()}
    for prefix, child in module.named_modules():
        if isinstance(child, PIIPClassifier | LSNetClassifier):
            return {f"{prefix}.{ours}": theirs for ours, theirs in official_names(child).items()}
        if isinstance(child, BranchPyramid | SingleBranch | LSNet):
            rules = HEAD_RULES + UPERNET_RULES + _DETECTOR + _DINO
            names = {f"{prefix}.{ours}": f"backbone.{theirs}" for ours, theirs in official_names(child).items()}
            others = [name for name in module.state_dict() if not name.startswith(f"{prefix}.")]
            names.update({name: new for name in others if (new := _rename(name, rules)) != name})
            return names
    raise TypeError(f"{type(module).__name__} contains no backbone that has released checkpoints")


def _rename(name: str, rules: list) -> str:
    """The name after the first rule that matches."""
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return name


def _branch_name(name: str, branch: Branch) -> str:
    """The first rule of the branch's family that matches; timm's own names where the family has none."""
    if isinstance(branch, TimmBranch):
        return branch.timm_name(name)
    return _rename(name, next((_BRANCHES[kind] for kind in type(branch).__mro__ if kind in _BRANCHES), []))


def _piip_name(name: str, model: BranchPyramid) -> str:
    num_branches = len(model.branches)
    kind, _, rest = name.partition(".")
    if kind == "branches":
        index, rest = rest.split(".", 1)
        return f"branch{num_branches - int(index)}.{_branch_name(rest, model.branches[int(index)])}"
    if kind == "interactions":
        step, position, rest = rest.split(".", 2)
        fine, coarse = (num_branches - k for k in model.pairs[int(position)])
        return f"interactions.{step}.interaction_units_{coarse}{fine}.{_unit_name(rest)}"
    if kind in ("merge", "stage_merges"):
        stage, rest = rest.split(".", 1) if kind == "stage_merges" else (None, rest)
        part, index, *rest = rest.split(".")
        branch = num_branches - int(index)
        new = f"w{branch}" if part == "weights" else ".".join([f"merge_branch{branch}", *rest])
        return new if stage is None else f"intermediate_merging_{stage}_{new.removeprefix('merge_')}"
    if kind == "heads":
        index, part = rest.split(".", 1)
        return f"branch{num_branches - int(index)}.{part.replace('fc.', 'head.')}"
    if kind == "head":
        return f"cls_{rest.replace('fc.', 'head.')}"
    return _rename(rest, [(pattern, new.format("fpn")) for pattern, new in _MULTI_SCALE])


def _unit_name(name: str) -> str:
    """Inside a unit, the released branch 1 is the coarse one."""
    direction, rest = name.split(".", 1)
    arrow = "branch2to1" if direction == "to_coarse" else "branch1to2"
    return f"{arrow}_{rest}" if rest.startswith("proj.") else f"{arrow}_injector.{_rename(rest, _INJECTOR)}"


def _single_branch_name(name: str, model: SingleBranch) -> str:
    kind, rest = name.split(".", 1)
    if kind == "branch":
        return _branch_name(rest, model.branch)
    return _rename(rest, [(pattern, new.format("up")) for pattern, new in _MULTI_SCALE])
