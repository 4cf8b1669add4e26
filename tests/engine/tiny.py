"""A training that takes a second: a small net with everything that may disturb a resume, on points in the plane."""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Classifies points; draws from all generators in training and has running statistics.

    Args:
        width: of the hidden layer.
        noise: of inputs and activations in training; 0 makes the training deterministic by itself.
        break_at: training step whose loss is NaN.
        pause: seconds that a training step sleeps.
    """

    def __init__(self, width: int = 16, noise: float = 0.1, break_at: int | None = None, pause: float = 0.0):
        super().__init__()
        self.hidden = nn.Linear(2, width)
        self.norm = nn.BatchNorm1d(width) if noise else nn.Identity()
        self.head = nn.Linear(width, 3)
        self.noise = noise
        self.break_at = break_at
        self.pause = pause
        self.steps = 0

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[Tensor]:
        x = torch.stack([sample["x"] for sample in batch])
        if not self.training:
            return list(self._classify(x).argmax(-1))
        x = x * (1 + self.noise * random.random()) + self.noise * float(np.random.rand())
        logits = self._classify(x)
        self.steps += 1
        time.sleep(self.pause)
        scale = float("nan") if self.steps - 1 == self.break_at else 1.0
        target = torch.tensor([sample["y"] for sample in batch], device=x.device)
        return {
            "loss_class": scale * nn.functional.cross_entropy(logits.float(), target),
            "loss_weight": 1e-3 * self.head.weight.square().mean(),
        }

    def _classify(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.hidden(x)).relu()
        return self.head(nn.functional.dropout(hidden, self.noise, self.training))


def tiny_points(count: int = 48) -> list[dict]:
    """Points around three centres, in the shape of Detectron2's dataset dicts."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return [
        {"image_id": i, "width": 4, "height": 4, "x": (centres[i % 3] + rng.normal(size=2)).tolist(), "y": i % 3}
        for i in range(count)
    ]


class Jitter:
    """A mapper that moves points at random."""

    def __init__(self, amount: float):
        self.amount = amount

    def __call__(self, sample: dict) -> dict:
        shift = self.amount * (torch.randn(2) + float(np.random.randn()) + random.gauss(0, 1))
        return {"x": torch.tensor(sample["x"]) + shift, "y": sample["y"], "image_id": sample["image_id"]}


class Accuracy(DatasetEvaluator):
    """Share of points that are classified right, in percent."""

    def reset(self) -> None:
        torch.rand(1)  # as an evaluation might
        self.right: list[bool] = []

    def process(self, inputs: list[dict], outputs: list[Tensor]) -> None:
        self.right += [int(o) == i["y"] for i, o in zip(inputs, outputs, strict=True)]

    def evaluate(self) -> dict:
        return {"points": {"accuracy": 100.0 * float(np.mean(self.right)), "error-first": float(not self.right[0])}}
