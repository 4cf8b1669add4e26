"""Norms of other networks merged into the convolutions before them, as our own are, so that neither has less to do."""

from __future__ import annotations

import copy
from functools import partial

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .forms import check

__all__ = ["fold_norms"]


def fold_norms(name: str, network: nn.Module, image: Tensor) -> nn.Module:
    """A copy in which every norm whose input is a convolution's output is a part of that convolution.

    Which ones these are is seen in a forward pass. What timm's norms do besides, dropping and activating, stays.

    Args:
        name: for the message of the error.
        network: in inference mode.
        image: (B, 3, H, W), what it takes.

    Raises:
        ArithmeticError: when the outputs are not those of the network, since a convolution's output goes elsewhere,
            too, for example.
    """
    folded = copy.deepcopy(network)
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # tensors are kept, since others could get their ids
    pairs: dict[str, nn.Conv2d] = {}

    def note_output(conv: nn.Conv2d, given: tuple[Tensor, ...], out: Tensor) -> None:
        made[id(out)] = out, conv

    def note_pair(name: str, norm: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        if id(given[0]) in made:
            pairs[name] = made[id(given[0])][1]

    hooks = []
    for path, module in folded.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(partial(note_pair, path)))
    with torch.inference_mode():
        expected = folded(image)
    for hook in hooks:
        hook.remove()
    for path, conv in pairs.items():
        norm = folded.get_submodule(path)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        folded.set_submodule(path, rest)
    with torch.inference_mode():
        check(name, folded(image), expected)
    return folded
