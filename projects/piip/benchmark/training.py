"""Training steps of backbones: forward and backward, as they are and with activations recomputed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..analysis.activations import saved_bytes
from ..layers import ska_reference
from ..modeling import LSNet
from ..modeling.lsnet import VARIANTS
from .backbones import with_aggregation
from .forms import with_same_weights
from .peers import make_piip, randomise
from .records import Row, environment
from .released import as_released
from .timing import Settings, in_turns, run_once

__all__ = ["CASES", "TrainingCase"]


@dataclass(frozen=True)
class TrainingCase:
    """A training step of one network.

    Attributes:
        model: ``"LSNet-B"``, ``"PIIP-TSB"`` and so on.
        resolutions: of a PIIP's branches; of LSNet pixels per side.
        batch: images.
        parts: whether the activations of every branch by itself are recomputed, and of the interactions.
        device: where alone it is measured; None for anywhere.
    """

    model: str
    resolutions: tuple[int, ...]
    batch: int
    parts: bool = False
    device: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {'/'.join(map(str, self.resolutions))} B{self.batch} training step"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.resolutions[0] <= 112

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the published form, ours, and ours with activations recomputed, where there is such a form.

        Peak memory is that beside weights and gradients, which are there before. How much of it autograd saved is
        counted, too, for float32 and not among the few quick cases.

        Raises:
            ArithmeticError: when losses or gradients of two forms do not agree.
        """
        torch.manual_seed(0)
        size = self.batch, *self.resolutions[:1] * 2
        image = torch.randn(self.batch, 3, *size[1:]).to(settings.device, settings.dtype)
        steps, numbers, first, expected = {}, {}, {}, None
        for name, model in self._forms(settings).items():
            steps[name], gradients = _step(model, image), _zero_gradients(model)
            once = run_once(steps[name], settings)
            numbers[name], first[name] = {"peak_mb": once.peak / 1e6}, once.ms
            result = once.result, *gradients
            expected = expected or [t.clone() for t in result]
            _check(f"{self.name}, {name}", result, expected)
            if settings.dtype == torch.float32 and not self.quick:
                numbers[name]["saved_mb"] = sum(saved_bytes(model, size, None, settings.device)) / 1e6
        turns = in_turns(steps, settings.at_most(2), first)
        about = environment(settings)
        return [
            Row(
                "train",
                self.name,
                name,
                *turn.values,
                numbers={"images_per_s": self.batch * 1000 / turn.median, **numbers[name]},
                environment=about,
            )
            for name, turn in turns.items()
        ]

    def _forms(self, settings: Settings) -> dict[str, nn.Module]:
        def ready(model: nn.Module) -> nn.Module:
            return model.to(settings.device, settings.dtype).train()

        kind, sizes = self.model.split("-")
        if kind == "LSNet":
            model = ready(randomise(LSNet(**VARIANTS[sizes.lower()])))
            return {"unfold": with_aggregation(ska_reference, model), "ours": model}
        ours = ready(randomise(make_piip(sizes, self.resolutions)))
        forms = {"published form": as_released(ours), "ours": ours, "ours, recomputed": with_same_weights(ours)}
        forms["ours, recomputed"].set_grad_checkpointing()
        if self.parts:
            for index, (size, resolution) in enumerate(zip(sizes, self.resolutions, strict=True)):
                forms[f"ours, {size} at {resolution} recomputed"] = partly = with_same_weights(ours)
                partly.branches[index].set_grad_checkpointing()
            forms["ours, interactions recomputed"] = partly = with_same_weights(ours)
            partly.use_act_checkpoint = True
        return forms


CASES = [
    TrainingCase("PIIP-TS", (112, 80), 1),
    TrainingCase("PIIP-TSB", (448, 320, 192), 1, parts=True),
    TrainingCase("LSNet-B", (224,), 8),
    TrainingCase("PIIP-TSB", (1568, 1120, 672), 2, device="cuda"),
    TrainingCase("PIIP-SBL", (1568, 896, 672), 2, device="cuda"),
    *(TrainingCase(f"LSNet-{size}", (224,), 256, device="cuda") for size in "TSB"),
]


def _zero_gradients(model: nn.Module) -> list[Tensor]:
    """Takes memory for the gradients, to which every step adds its own."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in model.parameters()]


def _step(model: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    """What is timed; it returns the loss."""

    def step() -> Tensor:
        loss = sum(maps.float().pow(2).mean() for maps in tree_leaves(model(image)))
        loss.backward()
        return loss.detach()

    return step


def _check(name: str, result: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compares loss and gradients, each by itself; in half precision, where small ones are rounding, all at once."""
    apart = torch.stack([(a - b).double().norm() for a, b in zip(result, expected, strict=True)])
    size = torch.stack([b.double().norm() for b in expected])
    # A sampled place that rounding puts at the other side of a cell's border has another gradient.
    tolerance = 5e-2
    if expected[-1].dtype != torch.float32:
        apart, size = (torch.stack([t[0], t[1:].norm()]) for t in (apart, size))
        tolerance = 2e-1
    error = float((apart / size.clamp(min=1e-30)).max())
    if not error < tolerance:
        raise ArithmeticError(f"{name}: loss or gradients differ by {error:.1e}; its time means nothing.")
