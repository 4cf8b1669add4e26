"""Layer-wise learning-rate decay over all branches of a pyramid at once, or over a network of timm.

Source: recipe of the released PIIP detectors; BEiT (arXiv:2106.08254) for the idea.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from torch import nn

from ..errors import ConfigError
from ..modeling.branches.base import Branch

__all__ = ["layer_decay_groups"]


def layer_decay_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    lr_decay_rate: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
    never_decay: Sequence[str] = (),
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups in which the learning rate falls with the distance from a branch's last block.

    With L the depth of the deepest branch, parameters of block i of a branch of depth d have the layer number
    ``floor((i + 1) * L / d)``, embeddings 0, and everything outside the branches (interactions, merging, necks, heads)
    ``L + 1``; the learning rate is ``base_lr * lr_decay_rate ** (L + 1 - number)``. So the last block of every branch
    has the same rate. In a model without branches the layers are those that timm tells of its networks.

    Weight decay spares one-dimensional tensors and biases. As in the released detectors' recipe it does apply to
    position embeddings and to the scalar branch weights of the merging.

    Args:
        model: any model; without branches or a network of timm inside, all parameters have the full rate.
        base_lr: learning rate of the heads.
        weight_decay: decay of weights.
        lr_decay_rate: factor per layer, in (0, 1].
        lr_factors: further factors for parts of the model by a word in their parameters' dotted names, such as
            ``{"interactions": 10}``.
        never_decay: last words of the names of tensors that weight decay spares, too, such as ``attention_biases``.
        decay_vectors: decay one-dimensional tensors and biases, too.

    Returns:
        groups with ``params``, ``lr``, ``weight_decay`` and, for logs and tests, ``lr_scale`` and ``names``.

    Raises:
        ConfigError: for a rate outside (0, 1], or a factor or exception that meets no parameter.
    """
    if not 0 < lr_decay_rate <= 1:
        raise ConfigError(f"lr_decay_rate={lr_decay_rate} must be above 0 and at most 1 (1: no decay).")
    # parameter name -> (layer inside its branch, depth of the branch)
    layers: dict[str, tuple[int, int]] = {}
    for prefix, branch in model.named_modules():
        if isinstance(branch, Branch):
            for name, _ in branch.named_parameters():
                if (layer := branch.layer_id(name)) is not None:
                    layers[f"{prefix}.{name}" if prefix else name] = (layer, branch.num_blocks)
    layers = layers or _timm_layers(model)
    deepest = max((depth for _, depth in layers.values()), default=0)
    lr_factors = dict(lr_factors or {})
    for argument, words in (("lr_factors", lr_factors), ("never_decay", never_decay)):
        known = {word for name, _ in model.named_parameters() for word in name.split(".")}
        if unknown := [word for word in words if word not in known]:
            raise ConfigError(f"{argument}: no parameter of the model has {unknown[0]!r} in its name.")
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, depth = layers.get(name, (deepest + 1, deepest))
        number = math.floor(layer * deepest / depth) if depth else 1
        words = name.split(".")
        vector = parameter.dim() == 1 or words[-1] == "bias"
        decay = 0.0 if (vector and not decay_vectors) or words[-1] in never_decay else weight_decay
        scale = lr_decay_rate ** (deepest + 1 - number)
        scale *= math.prod(factor for word, factor in lr_factors.items() if word in words)
        group = groups.setdefault(
            (number, scale, decay),
            {"params": [], "lr": base_lr * scale, "weight_decay": decay, "lr_scale": scale, "names": []},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _timm_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Layer and depth of the parameters of the first network of timm in a model; of a head, one layer more."""
    for prefix, module in model.named_modules():
        if hasattr(module, "group_matcher"):
            numbers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            depth = max(numbers.values()) - 1
            return {f"{prefix}.{name}".lstrip("."): (number, depth) for name, number in numbers.items()}
    return {}
