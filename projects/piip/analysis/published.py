"""#Params and #FLOPs as the papers count them, and in particular those of PIIP.

Most published numbers of the detectors do not describe the detectors. They were counted on the classification form of
the network at the detector's resolutions:

* position embeddings have one row per token of the branch's own resolution,
* branches are merged by GroupNorm and one linear layer each instead of 3x3 convolutions,
* there is no feature pyramid, but a LayerNorm over the merged tokens and a classifier of 1000 classes.

Networks with a map per stage, which have no classification form, were counted as the detector's backbone, up to the
merged maps: ConvNeXt by itself, and every PIIP that merges after several steps. What a model is thus decides how it is
counted.

One multiply-add counts as one operation. Layers are counted as a usual counting hook sees them: linear layers without
their bias, convolutions with it, and two operations per element for normalisations with scale and shift. Activation
functions but ReLU, softmax, residuals and resizing are free. Attention and deformable sampling come from closed
formulas, which leave out the padding of windows. The projection to queries, keys and values includes it, except in the
classification form of the DeiT kind.

Source: the two counting scripts of the released PIIP code, whose results the papers (arXiv:2406.04330,
arXiv:2501.07783) print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch

from torch import nn

from ..errors import ConfigError
from ..layers import DeformAttn
from ..modeling import PIIP, LSNetClassifier, PIIPClassifier, SingleBranch
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.branches import Branch, ConvNeXtBranch, InternViTBranch, ViTBranch
from ..modeling.interaction import Injector, InteractionUnit
from ..modeling.merging import StageMerge
from .cost import Cost
from .published_lsnet import lsnet_cost

__all__ = ["branch_cost", "published_cost"]

_CLASSES = 1000


def published_cost(model: nn.Module, resolution: int = 1024) -> dict[str, Cost]:
    """Counts a PIIP, a single branch or an LSNet classifier by the papers' method.

    Weights are not looked at, so meta tensors do.

    Args:
        model: the backbone, or a detector that contains it.
        resolution: pixels per side of the input of a :class:`~piip.modeling.SingleBranch`; the papers' baselines use
            1024. PIIP knows its own resolutions.

    Returns:
        the parts in the order of the data flow: branches, interactions, merging, and the classifier or the neck. Their
        sum is what the papers print.

    Raises:
        ConfigError: for a model that has neither, or has a branch that the papers' method does not cover.
    """
    if classifier := next((m for m in model.modules() if isinstance(m, LSNetClassifier)), None):
        return {"network": lsnet_cost(classifier)}
    backbone = next((m for m in model.modules() if isinstance(m, BranchPyramid | SingleBranch)), None)
    if backbone is None:
        raise ConfigError(
            "the papers' counting covers PIIP, single branches and LSNet classifiers, and "
            f"{type(model).__name__} contains none."
        )
    if isinstance(backbone, SingleBranch):
        branch = backbone.branch
        side = resolution // branch.embed_stride
        parts = {"branch": branch_cost(branch, side)}
        if not isinstance(branch, ConvNeXtBranch):  # counted in the detector, and nothing else of it
            norm = branch.blocks[-1].norm2  # the last norm is of the same kind
            parts["classifier"] = Cost(_params(norm), _hooked(norm, side**2)) + _head(branch.out_channels[-1])
        return parts
    in_detector = isinstance(getattr(backbone, "merge", None), StageMerge)
    rule = _branch_in_detector if in_detector else branch_cost
    parts = {
        f"branches.{k}": rule(branch, resolution // branch.embed_stride)
        for k, (branch, resolution) in enumerate(zip(backbone.branches, backbone.resolutions, strict=True))
    }
    if backbone.pairs:
        parts["interactions"] = Cost.total(_units(backbone, step) for step in range(len(backbone.interactions)))
    return parts | (_detector_end(backbone) if in_detector else _classification_end(backbone))


def _classification_end(piip: BranchPyramid) -> dict[str, Cost]:
    widths, sides = piip.widths(-1), _sides(piip, -1)
    if isinstance(piip, PIIPClassifier) and hasattr(piip, "heads"):
        heads = zip(widths, sides, strict=True)
        return {"heads": Cost.total(_classifier(width, side, piip.num_classes) for width, side in heads)}
    classes = getattr(piip, "num_classes", _CLASSES)
    return {"merge": _merge(widths, sides), "classifier": _classifier(widths[-1], sides[0], classes)}


def _detector_end(piip: PIIP) -> dict[str, Cost]:
    merges = {**{step: piip.stage_merges[str(step)] for step in piip.out_steps}, -1: piip.merge}
    parts = {"merge": Cost.total(_stage_merge(merge, _sides(piip, step)) for step, merge in merges.items())}
    if params := _params(piip.neck):
        parts["neck"] = Cost(params)  # it belongs to the parameters, but the counting stops before it
    return parts


def _sides(piip: BranchPyramid, step: int) -> list[int]:
    """Tokens per side of every branch after an interaction step."""
    return [
        resolution // branch.strides[groups[step][1]]
        for resolution, branch, groups in zip(piip.resolutions, piip.branches, piip.groups, strict=True)
    ]


def _units(piip: BranchPyramid, step: int) -> Cost:
    """The interaction units of a step."""
    sides = _sides(piip, step)
    return Cost.total(
        _unit(unit, sides[fine], sides[coarse])
        for (fine, coarse), unit in zip(piip.pairs, piip.interactions[step], strict=True)
    )


@singledispatch
def branch_cost(branch: Branch, side: int) -> Cost:
    """Counts one branch on a grid of ``side`` x ``side`` tokens; every family registers its own rule.

    Raises:
        ConfigError: for a family without a rule.
    """
    raise ConfigError(f"the papers' counting has no rule for branches of the kind {type(branch).__name__}.")


@branch_cost.register(ViTBranch)
def _vit_branch(branch: ViTBranch, side: int) -> Cost:
    return Cost(_positions_for(branch, side**2), _vit_macs(branch, side, padded=False))


@branch_cost.register(InternViTBranch)
def _internvit_branch(branch: InternViTBranch, side: int) -> Cost:
    return Cost(_positions_for(branch, branch.leading_positions + side**2), _vit_macs(branch, side, padded=True))


def _positions_for(branch: ViTBranch, rows: int) -> int:
    """The parameters of a branch whose position embedding has so many rows."""
    return _params(branch) - branch.pos_embed.numel() + rows * branch.out_channels[-1]


def _vit_macs(branch: ViTBranch, side: int, padded: bool) -> int:
    """``padded``: queries, keys and values are made of the padding of the windows, too."""
    tokens, width = side**2, branch.out_channels[-1]
    # A class token passes the layers, and is left out of the formulas for attention.
    macs = _hooked(branch.patch_embed, tokens) + _hooked(branch.blocks, tokens + branch.num_prefix_tokens)
    for block, window in zip(branch.blocks, branch.window_sizes, strict=True):
        # Queries times keys and weights times values; a window never looks further than its own side, padded or not.
        macs += 2 * tokens * (window**2 if window else tokens) * width
        if padded and window:
            macs += _hooked(block.attn.qkv, (math.ceil(side / window) * window) ** 2 - tokens)
    return macs


def _branch_in_detector(branch: Branch, side: int) -> Cost:
    """Position embeddings as they are, windows padded before the projections."""
    macs = _vit_macs(branch, side, padded=True) if isinstance(branch, ViTBranch) else branch_cost(branch, side).macs
    return Cost(_params(branch), macs)


@branch_cost.register(ConvNeXtBranch)
def _convnext_branch(branch: ConvNeXtBranch, side: int) -> Cost:
    # Its normalisations are classes of its own, which the counting hooks do not know.
    macs = _hooked(branch.stem, side**2, norms=False)
    for stage, stride in zip(branch.stages, sorted(set(branch.strides)), strict=True):
        macs += _hooked(stage, (side * branch.embed_stride // stride) ** 2, norms=False)
    return Cost(_params(branch), macs)


def _unit(unit: InteractionUnit, fine: int, coarse: int) -> Cost:
    macs = _injector(unit.to_fine, fine**2, coarse**2) + _injector(unit.to_coarse, coarse**2, fine**2)
    return Cost(_params(unit), macs)


def _injector(injector: Injector, queries: int, feats: int) -> int:
    attn = injector.attn
    on_feats: list[nn.Module] = [injector.proj, injector.feat_norm]
    on_queries: list[nn.Module] = [injector.query_norm]
    if injector.ffn is not None:
        on_queries += [injector.ffn_norm, injector.ffn]
    if isinstance(attn, DeformAttn):
        on_feats += [attn.value_proj]
        on_queries += [attn.sampling_offsets, attn.attention_weights, attn.output_proj]
        # Four taps and one weight per sample, of the full width although the values are half as wide.
        looking = 5 * queries * attn.num_points * attn.output_proj.out_features
    else:
        on_feats += [attn.wk, attn.wv]
        on_queries += [attn.wq, attn.proj]
        looking = 2 * queries * feats * attn.proj.out_features
    return (
        sum(_hooked(module, feats) for module in on_feats)
        + sum(_hooked(module, queries) for module in on_queries)
        + looking
    )


def _merge(widths: Sequence[int], sides: Sequence[int]) -> Cost:
    """GroupNorm for the last branch; GroupNorm, linear layer, GroupNorm for the others; a weight per branch."""
    out = widths[-1]
    cost = Cost(len(widths)) + Cost(2 * out, 2 * out * sides[-1] ** 2)
    for width, side in zip(widths[:-1], sides[:-1], strict=True):
        cost += Cost(
            params=2 * width + (width + 1) * out + 2 * out,
            macs=(2 * width + width * out + 2 * out) * side**2,
        )
    return cost


def _stage_merge(merge: StageMerge, sides: Sequence[int]) -> Cost:
    """The convolutions and GroupNorms of all branches, and the ReLU after them, on the grid of the branch."""
    macs = sum(
        _hooked(projection, side**2) + merge.out_channels * side**2
        for projection, side in zip(merge.projections, sides, strict=True)
    )
    return Cost(_params(merge), macs)


def _classifier(width: int, side: int, classes: int = _CLASSES) -> Cost:
    """LayerNorm over all tokens, then one linear layer for their mean or one of them."""
    return Cost(2 * width, 2 * width * side**2) + _head(width, classes)


def _head(width: int, classes: int = _CLASSES) -> Cost:
    return Cost((width + 1) * classes, width * classes)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _hooked(module: nn.Module, positions: int, norms: bool = True) -> int:
    """What counting hooks make of all layers of a module when each of them runs at so many positions."""
    per_position = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            per_position += layer.in_features * layer.out_features
        elif isinstance(layer, nn.Conv2d):
            taps = math.prod(layer.kernel_size) * layer.in_channels // layer.groups
            per_position += layer.out_channels * (taps + (layer.bias is not None))
        elif isinstance(layer, nn.LayerNorm) and norms:
            per_position += 2 * math.prod(layer.normalized_shape)
        elif isinstance(layer, nn.GroupNorm):
            per_position += 2 * layer.num_channels
    return per_position * positions
