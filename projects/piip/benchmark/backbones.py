"""LSNet's classifiers, in several forms, beside others of timm that are about as accurate."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ..layers import PointwiseConv2d, ska_reference
from ..modeling.fuse import fuse
from ..modeling.lsnet.blocks import LSConv
from .folding import fold_norms
from .forms import Form, compiled, measure_forms
from .records import Row
from .timing import Settings

__all__ = ["CASES", "PEER_ACCURACY", "BackboneCase", "create", "with_aggregation"]


_UNFOLD = "unfold, fused"


@dataclass(frozen=True)
class BackboneCase:
    """Inference of a batch of images by one LSNet and its peers.

    Attributes:
        model: timm's name of the LSNet.
        peers: timm's names of the others.
        batch: images.
        side: pixels.
        device: where alone it is measured; None for anywhere.
    """

    model: str
    peers: tuple[str, ...]
    batch: int
    side: int = 224
    device: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.side}x{self.side} B{self.batch} inference"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.model == "lsnet_t" and self.batch == 1

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the LSNet with laid-out neighbourhoods, with plain PyTorch, with kernels and compiled, all with their
        norms merged into convolutions but one; then of the peers, in timm's form for inference and their norms merged,
        too. Compiled ones are on a GPU also recorded as CUDA graphs.

        Raises:
            ArithmeticError: when two forms of a network do not agree.
        """
        torch.manual_seed(0)
        image = torch.randn(self.batch, 3, self.side, self.side).to(settings.device, settings.dtype)
        last = image.to(memory_format=torch.channels_last)
        model = create(self.model, settings).to(settings.dtype)
        fused = fuse(model)
        forms = {
            _UNFOLD: Form(_plain_convolutions(fuse(with_aggregation(ska_reference, model))), image, fused),
            "plain PyTorch, fused": Form(_PlainPyTorch(fused), image, fused, like=_UNFOLD),
            "kernels": Form(model, image, like=_UNFOLD),
            "kernels, fused": Form(fused, image, like=_UNFOLD),
            "kernels, fused, channels last": Form(_channels_last(fused), last, fused, like=_UNFOLD),
        }
        forms |= _compiled("kernels, fused", fused, image, settings, _UNFOLD)
        for name in self.peers:
            peer = reparameterize_model(create(name, settings))
            peer = fold_norms(f"{self.name}, {name}", peer, image[:1].float()).to(settings.dtype)
            forms[name] = Form(peer, image)
            forms |= _compiled(name, peer, image, settings, name)
            forms[f"{name}, channels last"] = Form(_channels_last(peer), last, peer, like=name)
        return measure_forms("backbones", self.name, forms, settings.at_most(5))


# Peers have about the same accuracy on ImageNet.
CASES = [
    BackboneCase(model, peers, batch, device=device)
    for model, peers in [
        ("lsnet_t", ("mobilenetv4_conv_small", "shvit_s2", "repvit_m0_9")),
        ("lsnet_s", ("repvit_m0_9", "fastvit_t8")),
        ("lsnet_b", ("repvit_m0_9", "repvit_m1_0", "mobilenetv4_conv_medium")),
    ]
    for batch, device in ((1, None), (8, None), (256, "cuda"))
]

# Top-1 on ImageNet of timm's weights, as in timm's own table of results.
PEER_ACCURACY = {
    "mobilenetv4_conv_small": 73.8,
    "shvit_s2": 75.2,
    "repvit_m0_9": 78.7,
    "fastvit_t8": 76.2,
    "repvit_m1_0": 80.2,
    "mobilenetv4_conv_medium": 79.1,
}


def _plain_convolutions(fused: nn.Module) -> nn.Module:
    """Takes back what `fuse` does for a CPU alone: norms stay folded, as by released code, and channels come first."""
    for module in fused.modules():
        module._forward_pre_hooks.clear()
        if isinstance(module, PointwiseConv2d):
            module.__class__ = nn.Conv2d
    return fused


class _PlainPyTorch(nn.Module):
    """A network as it runs where there is neither a compiler nor a GPU."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        before = os.environ.get("PIIP_KERNELS")
        os.environ["PIIP_KERNELS"] = "eager"
        try:
            return self.network(image)
        finally:
            del os.environ["PIIP_KERNELS"]
            os.environ.update({} if before is None else {"PIIP_KERNELS": before})


class _LSConv(LSConv):
    """LS convolution by another function than the operator."""

    aggregate: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.bn(self.aggregate(x, self.lkp(x))))


def with_aggregation(aggregate: Callable[[Tensor, Tensor], Tensor], model: nn.Module) -> nn.Module:
    """A copy of an LSNet, not fused yet, whose LS convolutions aggregate by another function than the operator."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is LSConv:
            module.__class__, module.aggregate = _LSConv, aggregate
    return model


def _channels_last(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


def _compiled(name: str, network: nn.Module, image: Tensor, settings: Settings, like: str) -> dict[str, Form]:
    """The compiled forms that were asked for."""
    modes = {"compiled": True} if settings.compiled else {}
    if modes and settings.device == "cuda":
        modes["CUDA graphs"] = "reduce-overhead"
    return {f"{name}, {how}": compiled(network, image, like, mode) for how, mode in modes.items()}


def create(name: str, settings: Settings) -> nn.Module:
    """In float32; norms and scales do something, as after training: what new ones do would not be missed."""
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            for shift in (module.bias, module.running_mean):
                nn.init.normal_(shift, std=0.1)
        elif isinstance(getattr(module, "gamma", None), nn.Parameter):
            nn.init.uniform_(module.gamma, 0.3, 0.7)
    return network.to(settings.device)
