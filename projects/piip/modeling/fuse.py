"""Folding norms and parallel branches into single convolutions, for inference."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ConfigError
from .lsnet.blocks import ConvNorm, RepDW
from .lsnet.classifier import Head

__all__ = ["fuse"]


def fuse(module: nn.Module) -> nn.Module:
    """A copy of a model whose LSNet parts compute the same with fewer layers.

    Every convolution takes in its BatchNorm, a re-parameterisable depthwise convolution becomes one 3x3 convolution,
    and a classifier's linear layer takes in the norm before it. Norms after LS convolution stay, since weights that
    depend on the image are before them. The copy is for inference and has other names in its state dict: load weights
    before.

    Source: RepVGG (arXiv:2101.03697), Sec. 3.3; published sizes and speeds of LSNet are those of fused models.

    Args:
        module: any model with LSNet parts, such as a backbone, a classifier or a whole detector, in evaluation mode.

    Raises:
        ConfigError: in training mode, or when the model has no such parts.
    """
    if module.training:
        raise ConfigError(f"a {type(module).__name__} in training mode cannot be fused; call its eval() first.")
    if not any(isinstance(part, tuple(_FUSED)) for part in module.modules()):
        raise ConfigError(f"the {type(module).__name__} has no LSNet parts left to fuse.")
    with torch.no_grad():
        return _replace(copy.deepcopy(module))


def _replace(module: nn.Module) -> nn.Module:
    if type(module) in _FUSED:
        return _FUSED[type(module)](module).requires_grad_(False)
    for name, child in module.named_children():
        setattr(module, name, _replace(child))
    return module


def _fuse_conv_norm(unit: ConvNorm) -> nn.Conv2d:
    return fuse_conv_bn_eval(unit.c, unit.bn)


def _fuse_rep_dw(mixer: RepDW) -> nn.Conv2d:
    large, small = _fuse_conv_norm(mixer.conv), _fuse_conv_norm(mixer.conv1)
    centre = small.weight + 1  # of the input itself
    large.weight += F.pad(centre, (1, 1, 1, 1))
    large.bias += small.bias
    return large


def _fuse_head(head: Head) -> nn.Linear:
    norm, linear = head.bn, head.l
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    fused = copy.deepcopy(linear)
    fused.weight.copy_(linear.weight * scale)
    fused.bias.copy_(linear.bias + linear.weight @ (norm.bias - norm.running_mean * scale))
    return fused


_FUSED = {ConvNorm: _fuse_conv_norm, RepDW: _fuse_rep_dw, Head: _fuse_head}
