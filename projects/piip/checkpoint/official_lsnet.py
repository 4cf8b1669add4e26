"""Names and values of the released LSNet checkpoints, and how our modules map to them.

Backbone, classifier and branch have the released names themselves. Source: key tables of the released models; mmdet's
and mmsegmentation's own names for heads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from detectron2.modeling.meta_arch import RetinaNet
from torch import Tensor, nn

from ..errors import CheckpointError
from ..modeling.lsnet import LSNet, LSNetBody, LSNetClassifier
from ..modeling.lsnet.blocks import Attention
from ..modeling.lsnet.position_bias import offset_index
from ..modeling.lsnet.weights import INDEX, absent_branches
from .describe import describe

__all__ = ["HEAD_RULES", "fit_anchors", "has_lsnet", "indices", "prepare"]

# Names of the neck and of heads that PIIP does not have.
HEAD_RULES = [
    (r"^(?:backbone\.)?lateral_convs\.c(\d)\.", lambda m: f"neck.lateral_convs.{int(m[1]) - 3}.conv."),
    (r"^(?:backbone\.)?output_convs\.p2\.", "neck.extra_fpn_convs.0.conv."),
    (r"^(?:backbone\.)?output_convs\.p(\d)\.", lambda m: f"neck.fpn_convs.{int(m[1]) - 3}.conv."),
    (r"^(?:backbone\.)?finer_conv\.", "neck.extra_trans_convs.0.conv."),
    (r"^head\.cls_subnet\.(\d)\.", lambda m: f"bbox_head.cls_convs.{int(m[1]) // 2}.conv."),
    (r"^head\.bbox_subnet\.(\d)\.", lambda m: f"bbox_head.reg_convs.{int(m[1]) // 2}.conv."),
    (r"^head\.cls_score\.", "bbox_head.retina_cls."),
    (r"^head\.bbox_pred\.", "bbox_head.retina_reg."),
    (r"^sem_seg_head\.p(\d)\.(\d)\.norm\.", lambda m: f"decode_head.scale_heads.{int(m[1]) - 3}.{m[2]}.bn."),
    (r"^sem_seg_head\.p(\d)\.(\d)\.", lambda m: f"decode_head.scale_heads.{int(m[1]) - 3}.{m[2]}.conv."),
    (r"^sem_seg_head\.predictor\.", "decode_head.conv_seg."),
]

# What a file may have and a model may lack as a whole.
_PART = re.compile(
    r"^(?:backbone\.)?(?:blocks\d|head|head_dist)\.|^(?:neck|rpn_head|roi_head|bbox_head|decode_head|auxiliary_head)\."
)


def has_lsnet(module: nn.Module) -> bool:
    """Whether a model is an LSNet backbone, classifier or branch, or has one of the first two inside."""
    return isinstance(module, LSNetBody) or any(isinstance(m, LSNet | LSNetClassifier) for m in module.modules())


def prepare(
    module: nn.Module, tensors: Mapping[str, Tensor], known: Collection[str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Brings a released file into the form in which a model's tensors are looked up.

    Takes classifiers, detectors and segmentors on either side. In place of the 1x1 branches of depthwise convolutions
    that a file does not have come tensors with which those branches add nothing.

    Args:
        known: released names of the model's tensors.

    Returns:
        the tensors; the names of the file that were left out; the names of the tensors that were put in.

    Raises:
        CheckpointError: when only one of two classifiers has a distillation head.
    """
    tensors, given = dict(tensors), dict(tensors)
    inside = [name for name in tensors if name.startswith("backbone.")]
    ignored: list[str] = []
    if any(name.startswith("backbone.") for name in known):
        if not inside:
            tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    elif inside:
        ignored = [name for name in tensors if name not in inside]
        tensors = {name.removeprefix("backbone."): tensors[name] for name in inside}
    heads = {name.split(".")[0] for name in tensors if name.startswith(("head.", "head_dist."))}
    if heads and any(name.startswith("head.") for name in known):
        wanted = {name.split(".")[0] for name in known if name.startswith(("head.", "head_dist."))}
        if heads != wanted:
            raise CheckpointError(
                f"the checkpoint looks like {describe(given)}, the model is {describe(module.state_dict())}; choose "
                "the one of lsnet_* and lsnet_*_distill that belongs to the checkpoint."
            )
    superfluous = [name for name in tensors if name.endswith(INDEX) or not _belongs(name, known)]
    for name in superfluous:
        del tensors[name]
    neutral = absent_branches(tensors, known)
    return {**fit_anchors(module, tensors), **neutral}, ignored + superfluous, list(neutral)


def _belongs(name: str, known: Collection[str]) -> bool:
    """Whether a model has the part of a network that a tensor is of."""
    match = _PART.match(name)
    if match is None or name in known:
        return True
    part = match[0].replace("head_dist.", "head.")
    return any(own.startswith(part) for own in known)


def fit_anchors(module: nn.Module, tensors: Mapping[str, Tensor], inverse: bool = False) -> dict[str, Tensor]:
    """Puts the outputs of a released RetinaNet into the order of Detectron2's anchors, or back.

    The released heads go through the sizes within each aspect ratio, Detectron2's through the ratios within each size.
    """
    out = dict(tensors)
    names = [name for name in out if name.startswith(("bbox_head.retina_cls.", "bbox_head.retina_reg."))]
    if names and isinstance(module, RetinaNet):
        sizes, ratios = _anchor_counts(module)
        order = (sizes, ratios) if inverse else (ratios, sizes)
        for name in names:
            if len(out[name]) % (sizes * ratios) == 0:
                out[name] = out[name].unflatten(0, (*order, -1)).transpose(0, 1).flatten(0, 2)
    return out


def _anchor_counts(module: RetinaNet) -> tuple[int, int]:
    """How many sizes and aspect ratios the anchors at a position have."""
    x0, y0, x1, y1 = next(iter(module.anchor_generator.cell_anchors)).double().unbind(1)
    ratios = len({round(float(ratio), 3) for ratio in (y1 - y0) / (x1 - x0)})
    return len(x0) // ratios, ratios


def indices(module: nn.Module) -> dict[str, Tensor]:
    """The index buffers that released models have beside every table of attention biases, by names like ours."""
    return {
        f"{name}{INDEX}".removeprefix("."): offset_index(part.resolution)
        for name, part in module.named_modules()
        if isinstance(part, Attention)
    }
