"""Finding the packaged configs that a checkpoint belongs to, by its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..checkpoint.adapt import PLAIN
from ..checkpoint.describe import BranchLook, looks_of
from ..checkpoint.load import LoadReport, match_weights
from ..errors import UserError
from ..modeling import PIIP, LSNet, SingleBranch
from ..modeling.without_weights import build_without_weights
from .zoo import get_config, list_configs, network_of

__all__ = ["fits", "matching_configs"]


# What changes no tensor of a model, wherever it stands in a config.
_NO_TENSOR = {
    "resolutions", "size_divisibility", "weights", "window_size", "drop_path_rate", "pixel_mean", "pixel_std",
    "square_size", "pad_after_qkv", "layer_scale_init",
}  # fmt: skip

# How descriptions of checkpoints begin for a branch of a class.
_FAMILIES = {
    "ViTBranch": "DeiT kind",
    "InternViTBranch": "InternViT kind",
    "BEiTBranch": "BEiT",
    "UniPerceiverBranch": "Uni-Perceiver",
    "ConvNeXtBranch": "ConvNeXt",
    "LSNetBranch": "LSNet",
    "LSNet": "LSNet",
    "create_model": "LSNet",
}


def matching_configs(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the packaged configs whose models have exactly the tensors of a checkpoint.

    Resolutions change no tensor, so that several configs may fit.

    Args:
        tensors: of a detector or of a bare backbone, by released or by our names, without wrappers.
    """
    looks = looks_of(tensors)
    answers: dict[str, bool] = {}
    fitting = []
    for name in list_configs():
        model = _model_of(name)
        if not _may_fit(model, looks):
            continue
        key = repr(_architecture(OmegaConf.to_container(model, resolve=True)))
        if key not in answers:
            answers[key] = _matches(model, tensors)
        if answers[key]:
            fitting.append(name)
    return fitting


def fits(model: nn.Module, report: LoadReport) -> bool:
    """Whether a checkpoint holds exactly the tensors of a model, or of its backbone alone."""
    backbone = next((f"{name}." for name, m in model.named_modules() if isinstance(m, PIIP | SingleBranch | LSNet)), "")
    backbone = backbone.lstrip(".")  # the model may be the backbone
    found = {*report.loaded, *report.resized}
    lacking = [name for name in model.state_dict() if name not in found]
    if report.mismatched or report.unexpected or any(name.startswith(backbone) for name in lacking):
        return False
    bare = all(name.startswith(backbone) for name in found)
    # Pixel statistics and anchors are made anew and may lack.
    return bare or all(name in dict(model.named_buffers()) for name in lacking)


@cache
def _model_of(config: str) -> DictConfig:
    return get_config(config).model


def _may_fit(model: DictConfig, looks: Sequence[BranchLook | None]) -> bool:
    """A quick look at number, families and widths of the networks, since building a model takes a second."""
    network = network_of(model)
    networks = network.get("branches") or [network.get("branch", network)]
    # The finest branch of a checkpoint may differ from that of its config.
    start = min(1, len(networks) - 1)
    return len(networks) == len(looks) and all(map(_may_be, networks[start:], looks[start:]))


def _may_be(node: DictConfig, look: BranchLook | None) -> bool:
    kind = getattr(node["_target_"], "__name__", str(node["_target_"]).rpartition(".")[2])
    if look is None or kind not in _FAMILIES:
        return look is None and kind not in _FAMILIES
    family = _FAMILIES[kind]
    same = look.family.startswith(family) or {look.family, family} <= PLAIN
    if "model_name" in node:
        return same and node.model_name.startswith("lsnet_")
    # An LSNet may end before its last stage.
    return same and look.width in ([node.embed_dim] if "embed_dim" in node else node.dims)


def _architecture(node: Any) -> Any:
    """A config without what changes no tensor."""
    if isinstance(node, dict):
        return {key: _architecture(value) for key, value in node.items() if key not in _NO_TENSOR}
    return [_architecture(value) for value in node] if isinstance(node, list) else node


def _matches(model: DictConfig, tensors: Mapping[str, Tensor]) -> bool:
    try:
        built = build_without_weights(model)
        _, report = match_weights(built, tensors)
    except UserError:  # also of a config that waits for the user's own data
        return False
    return not report.resized and fits(built, report)
