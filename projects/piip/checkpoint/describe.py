"""Telling from its tensors what a checkpoint holds: branches with family, width and depth, and the detector around."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..modeling.lsnet import VARIANTS

__all__ = ["BranchLook", "InteractionLook", "branches_of", "describe", "interactions_of", "look_at", "looks_of"]

_BRANCH = re.compile(r"(?:^|\.)(branch|branches\.)(\d+)\.(.+)$")
_SINGLE = re.compile(r"^(?:backbone\.|network\.)?(?:bottom_up\.)?(?:branch\.)?")
_BLOCK = re.compile(r"^(?:blocks|layers)\.(\d+)\.")
_LSNET_BLOCK = re.compile(r"^(blocks[1-4]\.\d+)\.ffn\.m\.pw2\.c\.weight$")
_CONVNEXT_BLOCK = re.compile(r"(stages\.\d+\.(?:blocks|layers)\.\d+)\.(?:conv_dw|dwconv)\.weight$")

_INTERACTION = re.compile(r"(?:^|\.)interactions\.(\d+)\.([^.]+)\.")
_ATTENTIONS = {"deformable attention": r"\.attn\.sampling_offsets\.", "dense attention": r"\.attn\.wq\."}
_OPTIONS = {
    "projections": r"(?:2to1|1to2)_proj\.|\.to_(?:coarse|fine)\.proj\.",
    "norms": r"\.query_norm\.",
    "feed-forward networks": r"\.ffn\.",
}

# The first that a name matches, by released and by our names.
_DETECTORS = {
    "DINO": r"^(bbox_head\.(transformer|cls_branches|label_embedding)|transformer\.(encoder|decoder)\.|denoising\.)",
    "Cascade Mask R-CNN": r"^roi_heads?\.(bbox_head|box_head)\.\d\.",
    "Mask R-CNN": r"^roi_heads?\.mask_head\.",
    "Faster R-CNN": r"^roi_heads?\.(bbox_head|box_head)\.",
    "RetinaNet": r"^(bbox_head\.retina_|head\.cls_subnet\.)",
    "Semantic FPN": r"^(decode_head\.scale_heads|sem_seg_head\.p\d)\.",
    "UperNet": r"^decode_head\.",
    "classifier with a distillation head": r"^(?:network\.)?head_dist\.",
    "classifier": (
        r"^(?:(?:network\.)?head\.(?:bn|l)|branch\d+\.head|cls_head|(?:model\.)?heads\.\d+\.fc|(?:model\.)?head\.fc)\."
    ),
}


@dataclass(frozen=True)
class BranchLook:
    """What the tensors of one branch tell of it."""

    family: str
    width: int
    depth: int


@dataclass(frozen=True)
class InteractionLook:
    """What the tensors of the interactions tell of them; as a string, in words."""

    steps: int
    units: int
    parts: frozenset[str]

    def __str__(self) -> str:
        if not self.steps:
            return "no interactions"
        have = [part for part in (*_ATTENTIONS, *_OPTIONS) if part in self.parts]
        lack = [part for part in _OPTIONS if part not in self.parts]
        text = f"{self.steps} interaction steps of {self.units} units in all"
        text += f" with {' and '.join(have)}" if have else ""
        return f"{text}, without {' and '.join(lack)}" if lack else text


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Says in words which model tensors belong to, by released or by our names."""
    looks = looks_of(tensors)
    if not branches_of(tensors):
        single = looks[0]
        if single is None:
            return f"something else ({', '.join(list(tensors)[:3])}, ...)" if tensors else "something else"
        text = f"a single network of width {single.width} and depth {single.depth} ({single.family})"
    elif None not in looks:
        families = list(dict.fromkeys(look.family for look in looks))
        kinds = families[0] if len(families) == 1 else ", ".join(look.family for look in looks)
        text = f"a {len(looks)}-branch PIIP of widths {_listed(look.width for look in looks)} and depths "
        text += f"{_listed(look.depth for look in looks)} ({kinds})"
    else:
        text = f"a {len(looks)}-branch PIIP ({', '.join(map(_in_short, looks))})"
    detector = next((kind for kind, pattern in _DETECTORS.items() if any(re.match(pattern, n) for n in tensors)), None)
    return f"{text} in a {detector}" if detector else text


def branches_of(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of every branch of a PIIP by their names inside the branch, finest branch first; else none."""
    groups: dict[tuple[str, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _BRANCH.search(name):
            groups.setdefault((match[1], int(match[2])), {})[match[3]] = tensor
    # Released checkpoints count from the coarsest branch, ours from the finest.
    released = any(kind == "branch" for kind, _ in groups)
    return [groups[key] for key in sorted(groups, reverse=released)]


def looks_of(tensors: Mapping[str, Tensor]) -> list[BranchLook | None]:
    """What can be told of every branch of a PIIP, finest first, or else of the single network that tensors are."""
    branches = branches_of(tensors) or [{_SINGLE.sub("", name): tensor for name, tensor in tensors.items()}]
    return [look_at(branch) for branch in branches]


def interactions_of(tensors: Mapping[str, Tensor]) -> InteractionLook:
    """Tells number and parts of the interactions of a PIIP, by released or by our names."""
    names = {name: match for name in tensors if (match := _INTERACTION.search(name))}
    units = {(match[1], match[2]) for match in names.values()}
    patterns = {**_ATTENTIONS, **_OPTIONS}
    parts = frozenset(part for part, pattern in patterns.items() if any(re.search(pattern, name) for name in names))
    return InteractionLook(len({step for step, _ in units}), len(units), parts)


def look_at(branch: Mapping[str, Tensor]) -> BranchLook | None:
    """Tells family, width and depth of a network by its tensors; None where it is of no known family."""
    if blocks := {match[1]: tensor for name, tensor in branch.items() if (match := _CONVNEXT_BLOCK.search(name))}:
        return BranchLook("ConvNeXt", max(tensor.shape[0] for tensor in blocks.values()), len(blocks))
    if blocks := {match[1]: tensor for name, tensor in branch.items() if (match := _LSNET_BLOCK.search(name))}:
        return BranchLook(_lsnet_family(branch), max(tensor.shape[0] for tensor in blocks.values()), len(blocks))
    depth = len({match[1] for name in branch if (match := _BLOCK.match(name))})
    patches = next((tensor for name, tensor in branch.items() if name.endswith("patch_embed.proj.weight")), None)
    if not depth or patches is None:
        return None
    return BranchLook(_transformer_family(branch), patches.shape[0], depth)


def _lsnet_family(branch: Mapping[str, Tensor]) -> str:
    stem = branch.get("patch_embed.4.c.weight")
    sizes = [size.upper() for size, options in VARIANTS.items() if stem is not None and options["dims"][0] == len(stem)]
    return "-".join(["LSNet", *sizes])


def _transformer_family(branch: Mapping[str, Tensor]) -> str:
    if any("relative_position_bias" in name for name in branch):
        return "BEiT"
    if any("temporal_pos_embed" in name for name in branch):
        return "Uni-Perceiver"
    norms = {name.rpartition("norm1.")[2] for name in branch if "norm1." in name}
    extras = ["RMSNorm"] * (norms == {"weight"}) + ["QK norm"] * any(".q_norm." in name for name in branch)
    if extras:
        return f"InternViT kind with {' and '.join(extras)}"
    if "cls_token" in branch or "pos_embed" not in branch:
        return "ViT"
    # The names of the two kinds may be the same, but only this one keeps a row for a class token.
    rows = branch["pos_embed"].shape[-2]
    return "InternViT kind" if math.isqrt(rows) ** 2 != rows else "DeiT kind"


def _in_short(look: BranchLook | None) -> str:
    return f"{look.family} {look.width} x {look.depth}" if look else "another network"


def _listed(numbers: Iterable[int]) -> str:
    return "/".join(map(str, numbers))
