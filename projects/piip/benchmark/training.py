"""Training steps of backbones: forward and backward, as they are and with activations recomputed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..layers import ska_reference
from ..modeling import LSNet
from ..modeling.lsnet import VARIANTS
from .backbones import with_aggregation
from .peers import make_piip, randomise
from .records import Row, environment
from .released import as_released
from .timing import Settings, in_turns, run_once

__all__ = ["CASES", "TrainingCase"]


@dataclass(frozen=True)
class TrainingCase:
    """A training step of one network.

    Attributes:
        model: ``"LSNet-B"``, or ``"PIIP-TSB"`` and so on.
        resolutions: of a PIIP's branches; of LSNet pixels per side.
        batch: images.
        rounds: at most so many turns.
    """

    model: str
    resolutions: tuple[int, ...]
    batch: int
    rounds: int = 3

    @property
    def name(self) -> str:
        return f"{self.model} {'/'.join(map(str, self.resolutions))} B{self.batch} training step"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.resolutions[0] <= 112

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the published form, ours, and ours with activations recomputed, where there is such a form.

        Raises:
            ArithmeticError: when losses or gradients of two forms do not agree.
        """
        torch.manual_seed(0)
        image = torch.randn(self.batch, 3, *self.resolutions[:1] * 2).to(settings.device, settings.dtype)
        steps = {name: _step(model, image) for name, model in self._forms(settings).items()}
        expected, numbers = None, {}
        for name, step in steps.items():
            result, memory = run_once(step, settings.device)
            expected = result if expected is None else expected
            _check(f"{self.name}, {name}", result, expected, settings.dtype)
            numbers[name] = {"peak_mb": memory / 1e6}
        turns = in_turns(steps, settings.at_most(self.rounds))
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

        if self.model == "LSNet-B":
            model = ready(randomise(LSNet(**VARIANTS["b"])))
            return {"unfold": with_aggregation(ska_reference, model), "ours": model}
        ours = ready(randomise(make_piip(self.model.removeprefix("PIIP-"), self.resolutions)))
        recomputed = copy.deepcopy(ours)
        recomputed.set_grad_checkpointing()
        return {"published form": as_released(ours), "ours": ours, "ours, recomputed": recomputed}


CASES = [
    TrainingCase("PIIP-TS", (112, 80), 1),
    TrainingCase("PIIP-TSB", (560, 448, 224), 1, rounds=2),
    TrainingCase("LSNet-B", (224,), 8),
]


def _step(model: nn.Module, image: Tensor) -> Callable[[], tuple[float, float]]:
    """Loss and size of the gradients of one step."""

    def step() -> tuple[float, float]:
        loss = sum(maps.float().pow(2).mean() for maps in tree_leaves(model(image)))
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        size = float(torch.stack([g.float().norm() for g in gradients]).norm())
        model.zero_grad(set_to_none=True)
        return loss.item(), size

    return step


def _check(name: str, result: tuple[float, float], expected: tuple[float, float], dtype: torch.dtype) -> None:
    error = max(abs(a - b) / abs(b) for a, b in zip(result, expected, strict=True))
    if not error < (1e-3 if dtype == torch.float32 else 1e-1):
        raise ArithmeticError(f"{name}: loss or gradients differ by {error:.1e}; its time means nothing.")
