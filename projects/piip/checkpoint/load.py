"""Loading weights of any supported origin into a model, with a report of every name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..modeling.branch_pyramid import BranchPyramid
from ..modeling.branches import Branch
from ..modeling.lsnet import LSNetBody
from ..modeling.lsnet.weights import resize_bias_table
from ..modeling.meta_arch import ImageClassifier
from ..modeling.piip_classifier import PIIPClassifier
from ..modeling.single_branch import SingleBranch
from .adapt import PLAIN, adapt_to_checkpoint, check_belongs
from .describe import BranchLook, branches_of, describe, look_at
from .files import tensors_of
from .large import check_memory, fill
from .official import UNUSED, official_names
from .official_lsnet import has_lsnet, prepare
from .resize import resize_patch_embed, resize_pos_embed, resize_relative_position_bias
from .upstream import upstream_name, upstream_tensors
from .weights import read_weights

__all__ = ["LoadReport", "load_branch", "load_official", "load_pretrained", "load_weights", "match_weights"]

logger = logging.getLogger(__name__)

# Parts of released models that a bare backbone has no place for.
_HEADS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "decode_head.", "auxiliary_head.")


@dataclass
class LoadReport:
    """What happened to every tensor, by our names (``unexpected`` and ``ignored``: by the checkpoint's).

    Attributes:
        loaded: taken over as they were.
        resized: taken over after resampling (position embeddings, patch convolutions).
        missing: in the model, but not in the checkpoint; left as they were.
        mismatched: in both, with different shapes (``name: checkpoint shape vs model shape``); left as they were.
        unexpected: in the checkpoint, with no place in the model.
        ignored: in the checkpoint and known not to be needed.
        absent: in the model, but left out of the checkpoint on purpose; set so that they have no effect.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was found and none was left over."""
        return not (self.missing or self.mismatched or self.unexpected)

    def __add__(self, other: LoadReport) -> LoadReport:
        return LoadReport(**{k: v + getattr(other, k) for k, v in vars(self).items()})

    def prefixed(self, prefix: str) -> LoadReport:
        """The same with ``prefix`` before every name."""
        return LoadReport(**{k: [prefix + name for name in v] for k, v in vars(self).items()})

    def __str__(self) -> str:
        lines = [", ".join(f"{len(names)} {kind}" for kind, names in vars(self).items())]
        for kind in ("resized", "missing", "mismatched", "unexpected", "absent"):
            if names := getattr(self, kind):
                lines.append(f"  {kind}: {_some(names, 6)}")
        return "\n".join(lines)


def load_official(module: nn.Module, state_dict: Mapping, strict: bool = True) -> LoadReport:
    """Loads a released PIIP or LSNet checkpoint into our model.

    Takes whole detectors and bare backbones on either side: a detector's backbone is taken out for a backbone, and
    a bare backbone goes to a detector's backbone. The released four-branch detectors may hold a fourth branch as
    wide as the third (the released code builds it from the third one's settings); the model then gets such a branch.
    The trunk of an LSNet classifier goes into an LSNet for dense tasks, with its attention biases resized.

    Args:
        module: a PIIP, SingleBranch or LSNet backbone, a classifier, or a model around one.
        state_dict: released names to tensors, or a container of it (``state_dict``, ``module``, ``model``).
        strict: whether anything missing, unexpected or of another shape is an error.

    Raises:
        CheckpointError: when the checkpoint belongs to another model (other branches, other interactions), or does not
            fit in strict mode; no weight is loaded then.
    """
    fitted, report = _match_official(module, tensors_of(state_dict), strict)
    fill(module, fitted)
    _warn_of_gaps(module, report)
    return report


def _match_official(
    module: nn.Module, tensors: Mapping[str, Tensor], strict: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    if has_lsnet(module):
        return _match_lsnet(module, tensors, strict)
    tensors = {upstream_name(name): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in official_names(module).values()):
        if not any(name.startswith("backbone.") for name in tensors):
            tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        ignored = []
    else:
        ignored = [k for k in tensors if k.startswith(_HEADS)]
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k not in ignored}
    own = module.state_dict()
    check_belongs(module, {official: own[name] for name, official in official_names(module).items()}, tensors)
    adapt_to_checkpoint(module, tensors)
    names = official_names(module)
    # Three-branch DINO detectors carry the finest deconvolution without using it.
    known = set(names.values())
    ignored += [k for k in tensors if k.removeprefix("backbone.").startswith("fpn1.") and k not in known]
    ignored += [k for k in tensors if UNUSED.search(k)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    ours = {name: tensors[official] for name, official in names.items() if official in tensors}
    unexpected = [name for name in tensors if name not in known]
    report = LoadReport(unexpected=unexpected, ignored=ignored)
    fitted, report = _fit_all(module, ours, report, names, tensors, strict)
    _check_parts(module, report)
    return fitted, report


def _match_lsnet(
    module: nn.Module, tensors: Mapping[str, Tensor], strict: bool, enough: float = 0.5
) -> tuple[dict[str, Tensor], LoadReport]:
    names = official_names(module)
    prepared, ignored, absent = prepare(module, tensors, names.values())
    ours = {name: prepared[official] for name, official in names.items() if official in prepared}
    known = set(names.values())
    report = LoadReport(unexpected=[name for name in prepared if name not in known], ignored=ignored, absent=absent)
    # Norms of the outputs are ours alone.
    expected = [name for name in names if name in ours or ".out_norms." not in f".{name}"]
    return _fit_all(module, ours, report, expected, tensors, strict, enough)


def load_weights(model: nn.Module, source: str, device: str | torch.device = "cpu") -> LoadReport:
    """Loads weights into a model from a file or URI, whatever their format.

    Our own checkpoints, released PIIP checkpoints, Detectron2's and single pretrained networks are told apart by
    their names. Tensors of another shape (a head for other classes) are left out and reported.

    A model whose parameters are on the meta device (:func:`piip.modeling.without_weights.build_without_weights`) gets
    their memory here, tensor by tensor, so that nothing is ever held twice; the checkpoint must be complete then.

    Args:
        model: any model; released formats need one that contains a PIIP, SingleBranch or LSNet.
        source: local path (of a file, or of a folder with an index of several), ``http(s)://``, ``piip://``,
            ``lsnet://`` or ``timm://`` address.
        device: where parameters go that are on the meta device.

    Raises:
        CheckpointError: when the file cannot be used for this model, or the memory is too small for its weights.
        DownloadError: when it cannot be fetched.
    """
    check_memory(model, device)
    tensors = read_weights(source)
    try:
        fitted, report = match_weights(model, tensors)
        fill(model, fitted, device)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {source!r}: {error}") from error
    logger.info("weights from %s: %s", source, report)
    _warn_of_gaps(model, report)
    return report


def match_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """Finds the place in a model of every tensor of a checkpoint of any format, without loading anything.

    Args:
        model: on any device, also meta; adapted to the checkpoint where released models differ from their configs.
        tensors: by the checkpoint's names, without wrappers.

    Returns:
        the tensors by the names of the model's state dict, in its shapes; and the report.

    Raises:
        CheckpointError: when the checkpoint belongs to another model.
    """
    if isinstance(model, LSNetBody):  # whose names are the released ones
        return _match_lsnet(model, tensors, strict=False)
    own = model.state_dict()
    if isinstance(model, ImageClassifier) and not any(name in own for name in tensors):
        # Released and pretrained classifiers are bare networks.
        fitted, report = match_weights(model.network, tensors)
        return {f"network.{name}": tensor for name, tensor in fitted.items()}, report.prefixed("network.")
    if sum(name in own for name in tensors) >= 0.5 * min(len(own), len(tensors)):
        check_belongs(model, own, tensors)
        adapt_to_checkpoint(model, tensors)
        own = model.state_dict()
        report = LoadReport(unexpected=[name for name in tensors if name not in own])
        ours = {name: tensor for name, tensor in tensors.items() if name in own}
        fitted, report = _fit_all(model, ours, report, own, tensors, strict=False)
        _check_parts(model, report)
        return fitted, report
    branches = _branches(model)
    if branches and not isinstance(model, Branch) and _is_single_network(model, tensors):
        fitted, report = _match_one_branch(branches, tensors)
        known = {*fitted, *report.missing}
        report.missing += [name for name in own if name not in known]
        return fitted, report
    try:
        return _match_official(model, tensors, strict=False)
    except TypeError as error:
        raise CheckpointError(
            f"it shares too few names with the model ({type(model).__name__}), and {error}; choose the config that "
            "belongs to the checkpoint."
        ) from error


def load_pretrained(model: nn.Module) -> LoadReport:
    """Loads the pretrained weights that the branches of a model name in their ``weights`` argument.

    The heads of a classifier are loaded with their branches, as far as their classes are the pretrained ones.

    Returns:
        one report for all branches; an empty one where no branch names any.

    Raises:
        CheckpointError: when a file does not fit its branch.
        DownloadError: when a file cannot be fetched.
    """
    total = LoadReport()
    heads = {
        branch: head
        for classifier in model.modules()
        if isinstance(classifier, PIIPClassifier) and hasattr(classifier, "heads")
        for branch, head in zip(classifier.branches, classifier.heads, strict=True)
    }
    for name, module in model.named_modules():
        if isinstance(module, Branch) and module.weights:
            tensors = read_weights(module.weights)
            report = load_branch(module, tensors, module.weights)
            if module in heads:
                _load_head(heads[module], tensors, report)
            logger.info("branch %s from %s: %s", name, module.weights, report)
            total += report.prefixed(f"{name}.")
    return total


def load_branch(branch: Branch, tensors: Mapping[str, Tensor], source: str = "checkpoint") -> LoadReport:
    """Loads a single pretrained network (timm's names or those of the original releases) into a branch.

    Final norm, class token and classification head have no place in a branch and are ignored; positions, relative ones
    too, and the patch convolution are resized to the branch's.

    Raises:
        CheckpointError: when less than three quarters of the branch is found, or what is found cannot be resized.
    """
    fitted, report = _match_branch(branch, tensors, source)
    fill(branch, fitted)
    return report


def _load_head(head: nn.Module, tensors: Mapping[str, Tensor], report: LoadReport) -> None:
    """Final norm and linear layer of the network that a branch was loaded from; others leave the head as it is."""
    own = head.state_dict()
    found = {name: tensors.get(name.replace("fc.", "head.")) for name in own}
    if all(tensor is not None and tensor.shape == own[name].shape for name, tensor in found.items()):
        fill(head, found)
        report.ignored = [name for name in report.ignored if not name.startswith(("norm.", "head."))]


def _match_branch(
    branch: Branch, tensors: Mapping[str, Tensor], source: str = "checkpoint"
) -> tuple[dict[str, Tensor], LoadReport]:
    own = branch.state_dict()
    official = {theirs: ours for ours, theirs in official_names(branch).items()}
    ours = {official.get(name, name): tensor for name, tensor in upstream_tensors(branch, tensors).items()}
    report = LoadReport(ignored=[name for name in ours if name not in own])
    try:
        if isinstance(branch, LSNetBody):
            return _match_lsnet(branch, tensors, strict=False, enough=0.75)
        return _fit_all(branch, {k: v for k, v in ours.items() if k in own}, report, own, tensors, False, enough=0.75)
    except CheckpointError as error:
        raise CheckpointError(f"pretrained weights {source!r} of a {len(own)}-tensor branch: {error}") from error


def _branches(model: nn.Module) -> dict[str, Branch]:
    """The branches in a model by the beginning of their tensors' names."""
    return {f"{name}.": module for name, module in model.named_modules() if isinstance(module, Branch)}


def _is_single_network(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are a network of no pyramid or detector, and not a bare backbone of the model's kind."""
    if branches_of(tensors) or look_at(tensors) is None or any(name.startswith("backbone.") for name in tensors):
        return False
    single = next((m for m in model.modules() if isinstance(m, SingleBranch)), None)
    neck = (
        [] if single is None else [theirs for ours, theirs in official_names(single).items() if "branch." not in ours]
    )
    return not any(name in tensors for name in neck)


def _match_one_branch(
    branches: Mapping[str, Branch], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """A single network goes to the one branch of its family, width and depth."""
    look = look_at(tensors)
    looks = {name: _released_look(branch) for name, branch in branches.items()}
    fitting = [name for name, own in looks.items() if own and _pretrains(look, own)]
    if len(fitting) != 1:
        have = ", ".join(f"{own.family} {own.width} x {own.depth}" if own else "another" for own in looks.values())
        raise CheckpointError(
            f"it is a single network of width {look.width} and depth {look.depth} ({look.family}), which fits "
            f"{len(fitting)} branches of the model ({have}); name it in the `weights` of the branch it is meant for."
        )
    name = fitting[0]
    fitted, report = _match_branch(branches[name], tensors)
    return {f"{name}{k}": tensor for k, tensor in fitted.items()}, report.prefixed(name)


def _released_look(branch: Branch) -> BranchLook | None:
    own = branch.state_dict()
    return look_at({official: own[name] for name, official in official_names(branch).items()})


def _pretrains(look: BranchLook, branch: BranchLook) -> bool:
    """Whether a pretrained network may be meant for a branch; its file does not tell the kinds of plain ones apart."""
    same_family = look.family == branch.family or {look.family, branch.family} <= PLAIN
    return same_family and (look.width, look.depth) == (branch.width, branch.depth)


def _fit_all(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    report: LoadReport,
    expected: Mapping[str, object],
    origin: Mapping[str, Tensor],
    strict: bool,
    enough: float = 0.5,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Checks tensors by our names, and resizes those that may be.

    Args:
        expected: names that should be there.
        origin: the tensors by the checkpoint's own names, for telling what it looks like.
        enough: the share of ``expected`` below which the checkpoint counts as another model's.
    """
    own = module.state_dict()
    fitted: dict[str, Tensor] = {}
    for name in expected:
        if name not in tensors:
            report.missing.append(name)
            continue
        tensor = _fit(name, tensors[name], own[name])
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensors[name].shape)} vs {tuple(own[name].shape)}"
            report.mismatched.append(f"{name}: {shapes}")
            continue
        fitted[name] = tensor
        (report.loaded if tensor is tensors[name] else report.resized).append(name)
    if len(fitted) < enough * len(expected):
        raise CheckpointError(
            f"only {len(fitted)} of the model's {len(expected)} tensors fit; the checkpoint looks like "
            f"{describe(origin)}, the model is {describe(own)}; choose the config that belongs to the checkpoint."
        )
    if strict and not report.complete:
        raise CheckpointError(
            f"the checkpoint does not fit the model exactly: {report}\n"
            f"The checkpoint looks like {describe(origin)}, the model is {describe(own)}."
        )
    return fitted, report


def _check_parts(module: nn.Module, report: LoadReport) -> None:
    """Refuses what leaves the interactions of a pyramid, or a branch, without weights that belong to it.

    Branches with other MLPs, and those of unknown families, may look the same from outside.

    Raises:
        CheckpointError: when any tensor of them has another shape, one of the interactions is missing, or more than a
            quarter of a branch's.
    """
    parts = {name: 0.25 * len(branch.state_dict()) for name, branch in _branches(module).items()}
    pyramids = [name for name, m in module.named_modules() if isinstance(m, BranchPyramid)]
    parts |= {f"{name}.interactions.".lstrip("."): 0 for name in pyramids}
    for part, allowed in parts.items():
        missing, mismatched = (
            [n for n in found if n.startswith(part)] for found in (report.missing, report.mismatched)
        )
        names = [*mismatched, *missing]
        if mismatched or len(missing) > allowed:
            raise CheckpointError(
                f"{len(names)} tensors of the model's {part.rstrip('.')} are missing in the checkpoint or have another "
                f"shape there ({names[0]} first); choose the config that belongs to the checkpoint."
            )


def _warn_of_gaps(module: nn.Module, report: LoadReport) -> None:
    """Says loudly that a backbone is left partly as it was, unless a pretrained network went to one of its branches."""
    found = [*report.loaded, *report.resized]
    if any(all(name.startswith(branch) for name in found) for branch in _branches(module)):
        return
    backbones = [name for name, m in module.named_modules() if isinstance(m, BranchPyramid | SingleBranch | LSNetBody)]
    prefixes = [f"{name}.".lstrip(".") for name in backbones]
    lacking = [name for name in (*report.missing, *report.mismatched) if any(map(name.startswith, prefixes))]
    if lacking:
        logger.warning(
            "%d tensors of the backbone are missing in the checkpoint or have another shape there, and stay as they "
            "were, which may be random: %s",
            len(lacking),
            _some(lacking),
        )


def _fit(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    """Resamples what may be resampled; everything else as it is."""
    if tensor.shape == own.shape:
        return tensor
    if name.endswith("spatial_pos_embed") and tensor.dim() == 2 and tensor.shape[1] == own.shape[1]:
        return resize_pos_embed(tensor[None], own.shape[0])[0]
    if name.endswith("pos_embed") and tensor.dim() == 3 and tensor.shape[-1] == own.shape[-1]:
        return resize_pos_embed(tensor, own.shape[1])
    if name.endswith("patch_embed.proj.weight") and tensor.dim() == 4 and tensor.shape[:2] == own.shape[:2]:
        return resize_patch_embed(tensor, own.shape[-1])
    if name.endswith("relative_position_bias_table") and tensor.dim() == 2:
        return _fit_bias(name, tensor, own)
    if name.endswith("attention_biases") and tensor.dim() == 2 and tensor.shape[0] == own.shape[0]:
        return resize_bias_table(tensor, own.shape[1])
    return tensor


def _fit_bias(name: str, table: Tensor, own: Tensor) -> Tensor:
    rows, heads = table.shape
    if heads != own.shape[1]:
        raise CheckpointError(
            f"{name} ({rows} rows, {heads} heads) is for another number of heads than {own.shape[1]}."
        )
    try:
        return resize_relative_position_bias(table, own.shape[0])
    except CheckpointError as error:
        raise CheckpointError(f"{name} ({rows} rows, {heads} heads): {error}") from error


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")
