"""What we want to reach on a CPU, beside what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from .records import Row, grouped

__all__ = ["GOALS", "Goal", "goals_table"]

_TEXT = """\
## Goals

For one thread of a CPU, in float32 where nothing else is said. "times as fast": the fastest of our ways beside the
fastest of the others; "of the time" and "of the memory": what ours takes beside what the others take. Of several cases
the one furthest from the goal is told.
"""
_SPEED, _TIME, _MEMORY = "times as fast", "of the time", "of the memory"


@dataclass(frozen=True)
class Goal:
    """A ratio of two ways to compute the same.

    Attributes:
        what: in words.
        cases: pattern of the names of the cases.
        ours, others: patterns of the names of the rows.
        must: what the ratio must reach: speed at least, time and memory at most.
        hoped: what it should; None where that is no more.
        kind: ``"times as fast"``, ``"of the time"`` or ``"of the memory"``.
        dtype: of the rows.
    """

    what: str
    cases: str
    ours: str
    others: str
    must: float
    hoped: float | None = None
    kind: str = _SPEED
    dtype: str = "float32"

    def measured(self, rows: Sequence[Row]) -> float | None:
        """The ratio of the case that is furthest from the goal; None without rows of both."""
        ratios = list(self._ratios(rows))
        return (min if self.kind == _SPEED else max)(ratios, default=None)

    def reached(self, value: float) -> bool:
        """Whether a ratio is as good as it must be."""
        return value >= self.must if self.kind == _SPEED else value <= self.must

    def _ratios(self, rows: Sequence[Row]) -> Iterator[float]:
        rows = [row for row in rows if row.environment.get("dtype") == self.dtype]
        for case, group in grouped(rows, lambda row: row.case).items():
            if not re.fullmatch(self.cases, case):
                continue
            ours, others = ([r for r in group if re.fullmatch(way, r.name)] for way in (self.ours, self.others))
            if not (ours and others):
                continue
            if self.kind == _MEMORY:
                memory = next(name for name in ("peak_mb", "extra_mb") if name in ours[0].numbers)
                yield min(r.numbers[memory] for r in ours) / min(r.numbers[memory] for r in others)
                continue
            speed = max(r.ratio for r in ours) / max(r.ratio for r in others)
            yield speed if self.kind == _SPEED else 1 / speed


_PLAIN, _KERNELS = "eager.*", "(?!eager|unfold|grid_sample|copy).*"
_SKA, _DEFORM = r"SKA {} C\d+ {} {}", "deformable attention .* {} {}"
_FORWARD, _BOTH = "forward", r"forward \+ backward"
_TSB = "PIIP-TSB 1568/1120/672 beside ViT-B 1024"
_LSNET = "lsnet_{} 224x224 {} inference"
GOALS = [
    Goal("SKA in plain PyTorch / unfolding", _SKA.format(r"\d+x\d+", r"B\d", _FORWARD), _PLAIN, "unfold", 1.0, 1.3),
    Goal("the same, 14 to 28 cells, B8", _SKA.format("(14x14|28x28)", "B8", _FORWARD), _PLAIN, "unfold", 2.5, 5),
    Goal("the same, 100x168 cells", _SKA.format("100x168", "B1", _FORWARD), _PLAIN, "unfold", 10, 12),
    Goal("SKA's kernels / unfolding, B1", _SKA.format(r"\d\d?x\d\d?", "B1", _FORWARD), _KERNELS, "unfold", 10),
    Goal("the same, B8", _SKA.format(r"\d+x\d+", "B8", _FORWARD), _KERNELS, "unfold", 18),
    Goal("the same, 100x168 cells", _SKA.format("100x168", "B1", _FORWARD), _KERNELS, "unfold", 37),
    Goal("SKA with gradients, plain PyTorch, B8", _SKA.format(r"\d+x\d+", "B8", _BOTH), _PLAIN, "unfold", 1.2),
    Goal("SKA with gradients, kernels, B1", _SKA.format(r"\d+x\d+", "B1", _BOTH), _KERNELS, "unfold", 3),
    Goal("the same, B8", _SKA.format(r"\d+x\d+", "B8", _BOTH), _KERNELS, "unfold", 8, 15),
    *(
        Goal(
            f"deformable attention, {words} / grid_sample, {dim}",
            _DEFORM.format(dim, _FORWARD),
            ways,
            "grid_sample",
            must,
        )
        for words, ways, musts in (("plain PyTorch", _PLAIN, (1.05, 1.4, 3.5)), ("kernels", _KERNELS, (2.4, 3.7, 10)))
        for dim, must in zip(("D6", "D12", "D24"), musts, strict=True)
    ),
    Goal("the same with gradients, D6", _DEFORM.format("D6", _BOTH), _KERNELS, "grid_sample", 1.9),
    Goal("the same with gradients, D24", _DEFORM.format("D24", _BOTH), _KERNELS, "grid_sample", 5),
    Goal("PIIP-TSB 1568 / published form", _TSB, "ours, fused.*", "published form", 1.4, 1.7),
    Goal("the same", _TSB, "ours, fused", "published form", 1.0, kind=_MEMORY),
    Goal("both in bfloat16", _TSB, "ours, fused.*", "published form", 2.2, 3, dtype="bfloat16"),
    Goal("PIIP-TSB 1568 / ViT-B 1024", _TSB, "ours, fused.*", "ViT-B.*", 1.3, 1.15, _TIME),
    Goal(
        "LSNet in plain PyTorch / unfolding, B8",
        _LSNET.format(".", "B8"),
        "plain PyTorch, fused",
        "unfold, fused",
        1.03,
    ),
    Goal(
        "LSNet with kernels / unfolding, B8", _LSNET.format(".", "B8"), "kernels, fused.*", "unfold, fused", 1.1, 1.25
    ),
    Goal("LSNet compiled / unfolding, B8", _LSNET.format(".", "B8"), ".*fused, compiled", "unfold, fused", 1.3, 1.6),
    Goal("LSNet-T / repvit_m0_9, B8", _LSNET.format("t", "B8"), "kernels, fused.*", "repvit_m0_9.*", 0.55, kind=_TIME),
    Goal("LSNet-S / repvit_m0_9, B8", _LSNET.format("s", "B8"), "kernels, fused.*", "repvit_m0_9.*", 0.8, kind=_TIME),
    Goal("LSNet-B / repvit_m1_0, B8", _LSNET.format("b", "B8"), "kernels, fused.*", "repvit_m1_0.*", 1.15, 1.0, _TIME),
]


def goals_table(rows: Sequence[Row]) -> str:
    """The section of the page; empty without rows to which a goal applies."""
    wanted = {"threads": 1, "clock": "process time"}
    rows = [row for row in rows if all(row.environment.get(name) == value for name, value in wanted.items())]
    table = []
    for goal in GOALS:
        value = goal.measured(rows)
        if value is None:
            continue
        sign = ">=" if goal.kind == _SPEED else "<="
        table.append(
            {
                "": goal.what,
                "goal": f"{sign} {goal.must:g} {goal.kind}",
                "hoped for": "" if goal.hoped is None else f"{sign} {goal.hoped:g}",
                "measured": f"{value:.2f}",
                "reached": "yes" if goal.reached(value) else "no",
            }
        )
    if not table:
        return ""
    text = f"{_TEXT}\n{tabulate(table, headers='keys', tablefmt='github', disable_numparse=True)}\n"
    rates = rows[0].environment
    if rates["bfloat16_gflops"] < rates["float32_gflops"]:
        text += (
            "\nThat bfloat16 be 2.5 times as fast as float32 cannot be shown on this machine: its matrix products in\n"
            f"bfloat16 run at {rates['bfloat16_gflops'] / rates['float32_gflops']:.2f} times the rate of those in "
            "float32. `fuse`\nmultiplies in float32 there, which the published form does not.\n"
        )
    return text
