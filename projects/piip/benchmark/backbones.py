"""LSNet's classifiers, in several forms, beside others of timm that are about as accurate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers import ska_reference
from ..layers.kernels import ska_eager
from ..modeling.fuse import fuse
from ..modeling.lsnet.blocks import LSConv
from .records import Row, environment
from .timing import Settings, in_turns

__all__ = ["CASES", "BackboneCase"]

# Relative error in the L2 norm between two forms of one network.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@dataclass(frozen=True)
class BackboneCase:
    """Inference of a batch of images by one LSNet and its peers.

    Attributes:
        model: timm's name of the LSNet.
        peers: timm's names of the others.
        batch: images.
        side: pixels.
    """

    model: str
    peers: tuple[str, ...]
    batch: int
    side: int = 224

    @property
    def name(self) -> str:
        return f"{self.model} {self.side}x{self.side} B{self.batch} inference"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.model == "lsnet_t" and self.batch == 8

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the LSNet with laid-out neighbourhoods, with plain PyTorch, with kernels, fused and compiled; then
        of the peers, whose branches and norms are merged as far as timm does it.

        Raises:
            ArithmeticError: when two forms of the LSNet do not agree.
        """
        torch.manual_seed(0)
        image = torch.randn(self.batch, 3, self.side, self.side).to(settings.device, settings.dtype)
        model = _create(self.model, settings)
        with torch.inference_mode():
            fused = fuse(model)
            forms = {
                "unfold": partial(_with(ska_reference, model), image),
                "eager": partial(_with(ska_eager.forward, model), image),
                "kernels": partial(model, image),
                "kernels, fused": partial(fused, image),
                "kernels, fused, channels last": partial(_channels_last(fused), _channels_last(image)),
            }
            networks = {name: fused if "fused" in name else model for name in forms}
            if settings.compiled:
                forms["kernels, fused, compiled"] = partial(torch.compile(fused), image)
                networks["kernels, fused, compiled"] = fused
            expected = forms["unfold"]()
            for name, form in forms.items():
                _check(f"{self.name}, {name}", form(), expected)
            for name in self.peers:
                networks[name] = reparameterize_model(_create(name, settings))
                forms[name] = partial(networks[name], image)
            turns = in_turns(forms, settings)
        about = environment(settings)
        return [
            Row("backbones", self.name, name, t.median, t.minimum, t.spread, t.ratio, numbers, about)
            for name, t in turns.items()
            for numbers in [{"images_per_s": self.batch * 1000 / t.median, **_numbers(networks[name], image[:1])}]
        ]


# Peers have about the same accuracy on ImageNet.
CASES = [
    BackboneCase(model, peers, batch)
    for model, peers in [
        ("lsnet_t", ("mobilenetv4_conv_small", "shvit_s2", "repvit_m0_9")),
        ("lsnet_s", ("repvit_m0_9", "fastvit_t8")),
        ("lsnet_b", ("repvit_m1_0",)),
    ]
    for batch in (1, 8)
]


class _LSConv(LSConv):
    """LS convolution by another function than the operator."""

    aggregate: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.bn(self.aggregate(x, self.lkp(x))))


def _with(aggregate: Callable[[Tensor, Tensor], Tensor], model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is LSConv:
            module.__class__, module.aggregate = _LSConv, aggregate
    return model


def _channels_last(what: Any) -> Any:
    """A copy of an image or a network whose channels come last in memory."""
    return copy.deepcopy(what).to(memory_format=torch.channels_last)


def _create(name: str, settings: Settings) -> nn.Module:
    return timm.create_model(name).eval().to(settings.device, settings.dtype)


def _check(name: str, result: Tensor, expected: Tensor) -> None:
    error = float((result - expected).float().norm() / expected.float().norm())
    if not error < _TOLERANCES[result.dtype]:
        raise ArithmeticError(f"{name}: differs from the plain form by {error:.1e}; its time means nothing.")


def _numbers(network: nn.Module, image: Tensor) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    return {"gmacs": counter.get_total_flops() / 2e9, "batch_norms": norms}
