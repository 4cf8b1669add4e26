"""Attention in windows and over all tokens: fused, and with the matrix of weights written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import check
from .records import Row, environment
from .timing import Settings, in_turns, recorded, run_once

__all__ = ["CASES", "AttentionCase"]


@dataclass(frozen=True)
class AttentionCase:
    """Attention of one size, without its projections.

    Attributes:
        what: where it occurs.
        windows: how many sequences attend to themselves.
        tokens: of each.
        heads: of 64 channels each.
        backward: whether gradients are computed, too.
    """

    what: str
    windows: int
    tokens: int
    heads: int
    backward: bool = False

    @property
    def name(self) -> str:
        direction = "forward + backward" if self.backward else "forward"
        return f"attention {self.what}: {self.windows} x {self.tokens} tokens, {self.heads} heads {direction}"

    @property
    def quick(self) -> bool:
        """Whether it is among the few cases of continuous integration."""
        return self.tokens == 196 and not self.backward

    def measure(self, settings: Settings) -> list[Row]:
        """Rows of the written-out form, of torch's fused one, and of a copy of queries, keys and values for scale.

        Raises:
            ArithmeticError: when they do not agree.
        """
        torch.manual_seed(0)
        shape = self.windows, self.heads, self.tokens, 64
        qkv = [torch.randn(shape).to(settings.device, settings.dtype).requires_grad_(self.backward) for _ in range(3)]
        grad = torch.randn(shape).to(settings.device, settings.dtype)

        def run(attend) -> tuple[Tensor, ...]:
            out = attend(*qkv)
            return (out.detach(), *torch.autograd.grad(out, qkv, grad)) if self.backward else (out,)

        ways = {"written out": lambda: run(_written_out), "fused": lambda: run(F.scaled_dot_product_attention)}
        results = {name: run_once(way, settings) for name, way in ways.items()}
        error = check(f"{self.name}, fused", results["fused"].result, results["written out"].result)
        # Two products forward, four more backward (and fused attention computes one of the first two again).
        products = 6 if self.backward else 2
        gmacs = products * self.windows * self.heads * self.tokens**2 * 64 / 1e9
        numbers = {name: {"gmacs": gmacs, "peak_mb": once.peak / 1e6} for name, once in results.items()}
        numbers["fused"]["error"] = error
        first = {name: once.ms for name, once in results.items()}
        del results
        ways["copy of q, k, v"] = lambda: [t.detach().clone() for t in qkv]
        if settings.device == "cuda":
            ways = {name: recorded(way) for name, way in ways.items()}
        turns = in_turns(ways, settings.at_most(5), first)
        about = environment(settings)
        return [Row("ops", self.name, name, *turn.values, numbers.get(name, {}), about) for name, turn in turns.items()]


CASES = [
    AttentionCase("ViT-S, windows of 14", 25, 196, 6),
    AttentionCase("ViT-B, windows of 14", 9, 196, 12),
    AttentionCase("ViT-L, windows of 28", 4, 784, 16),
    AttentionCase("ViT-B, all tokens", 1, 4096, 12),
    AttentionCase("ViT-B, windows of 14", 9, 196, 12, backward=True),
]


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
