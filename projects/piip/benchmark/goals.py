"""What we want to reach, beside what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from .records import Row, grouped

__all__ = ["GOALS", "GPU_GOALS", "Goal", "goals_table"]

_TEXT = """\
## Goals

For one thread of a CPU, in float32 where nothing else is said. "times as fast": the fastest of our ways beside the
fastest of the others; "of the time" and "of the memory": what ours takes beside what the others take; "launches": what
a GPU would have to start. Of several cases the one furthest from the goal is told.
"""
_GPU_TEXT = """\
## Goals on a GPU

For an H200 in bfloat16; other GPUs differ in all but the ratios. The floor is what the machine's rates of copying and
of matrix products, measured in the same run, allow.
"""
_SPEED, _TIME, _MEMORY = "times as fast", "of the time", "of the memory"
_MS, _RATE, _FLOOR, _LAUNCHES = "ms", "images/s", "of the floor", "launches"


@dataclass(frozen=True)
class Goal:
    """A ratio of two ways to compute the same, or a number of one way.

    Attributes:
        what: in words.
        cases: pattern of the names of the cases.
        ours, others: patterns of the names of the rows; "" for no others.
        must: what must be reached: of speeds and shares of a floor at least, of time and memory at most.
        hoped: what should be; None where that is no more.
        kind: a ratio: ``"times as fast"``, ``"of the time"`` or ``"of the memory"``; a number: ``"ms"``,
            ``"images/s"``, ``"of the floor"`` or ``"launches"``.
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

    @property
    def sign(self) -> str:
        """``">="`` where more is better, else ``"<="``."""
        return ">=" if self.kind in (_SPEED, _RATE, _FLOOR) else "<="

    def measured(self, rows: Sequence[Row]) -> float | None:
        """The value of the case that is furthest from the goal; None without the rows for it."""
        return (min if self.sign == ">=" else max)(self._values(rows), default=None)

    def reached(self, value: float) -> bool:
        """Whether a value is as good as it must be."""
        return value >= self.must if self.sign == ">=" else value <= self.must

    def _values(self, rows: Sequence[Row]) -> Iterator[float]:
        rows = [row for row in rows if row.environment.get("dtype") == self.dtype]
        for case, group in grouped(rows, lambda row: row.case).items():
            if not re.fullmatch(self.cases, case):
                continue
            ours, others = ([r for r in group if re.fullmatch(way, r.name)] for way in (self.ours, self.others))
            if self.kind in _NUMBERS:
                numbers = [number for row in ours if (number := _NUMBERS[self.kind](row)) is not None]
                if numbers:
                    yield (max if self.sign == ">=" else min)(numbers)
            if not (ours and others):
                continue
            if self.kind == _MEMORY:
                memory = next(name for name in ("peak_mb", "extra_mb") if name in ours[0].numbers)
                yield min(r.numbers[memory] for r in ours) / min(r.numbers[memory] for r in others)
                continue
            speed = max(r.ratio for r in ours) / max(r.ratio for r in others)
            yield speed if self.kind == _SPEED else 1 / speed


_NUMBERS: dict[str, Callable[[Row], float | None]] = {
    _MS: lambda row: row.ms,
    _RATE: lambda row: row.numbers["images_per_s"],
    _FLOOR: lambda row: row.share_of_floor or 0.0,
    _LAUNCHES: lambda row: row.numbers.get("launches"),  # older rows have none
}

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
    Goal("PIIP-TSB 1568", _TSB, "ours, fused", "", 1200, kind=_LAUNCHES),
    Goal("the same in bfloat16", _TSB, "ours, fused", "", 1200, kind=_LAUNCHES, dtype="bfloat16"),
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


_SBL = "PIIP-SBL 1568/896/672{} beside ViT-L 1024"
_TSB_B8 = _TSB.replace(" beside", " B8 beside")
GPU_GOALS = [
    replace(goal, dtype="bfloat16")
    for goal in [
        Goal("SKA's kernels / unfolding, B256", _SKA.format(r"\d+x\d+", "B256", _FORWARD), _KERNELS, "unfold", 10),
        *(
            Goal(f"the same, {cells} cells", _SKA.format(cells, "B256", _FORWARD), _KERNELS, "", must, hoped, _FLOOR)
            for cells, must, hoped in (("28x28", 0.6, 0.8), ("14x14", 0.5, 0.7), ("7x7", 0.4, 0.6))
        ),
        Goal("SKA with gradients, 28x28 cells", _SKA.format("28x28", "B256", _BOTH), _KERNELS, "", 0.5, 0.7, _FLOOR),
        Goal("SKA and norms at once / one by one", "SKA with norms .* B256 .*", "triton.*", "one by one.*", 1.7, 2.1),
        Goal(
            "deformable attention, kernels / grid_sample",
            _DEFORM.format(r"D\d+", _FORWARD),
            _KERNELS,
            "grid_sample",
            4,
        ),
        Goal("PIIP-TSB 1568 / published form", _TSB, "ours, fused.*", "published form", 3),
        Goal("the same, B8", _TSB_B8, "ours, fused.*", "published form", 1.8),
        Goal("PIIP-TSB 1568", _TSB, "ours, fused.*", "", 6, 4.5, _MS),
        Goal("the same, B8", _TSB_B8, "ours, fused.*", "", 42, 33, _MS),
        Goal("PIIP-TSB 1568", _TSB, "ours, fused", "", 1200, kind=_LAUNCHES),
        Goal("PIIP-SBL 1568", _SBL.format(""), "ours, fused.*", "", 13, 10, _MS),
        Goal("the same, B8", _SBL.format(" B8"), "ours, fused.*", "", 90, 75, _MS),
        Goal("PIIP-TSB 1568 / ViT-B 1024", _TSB, "ours, fused.*", "ViT-B.*", 2.2, 1.9, _TIME),
        *(
            Goal(f"LSNet-{size.upper()}, B256", _LSNET.format(size, "B256"), "kernels, fused.*", "", must, hoped, _RATE)
            for size, must, hoped in (("t", 130e3, 211e3), ("s", 100e3, 151e3), ("b", 55e3, 75e3))
        ),
    ]
]


def goals_table(rows: Sequence[Row]) -> str:
    """The sections of the page, for the CPU and for GPUs; empty without rows to which a goal applies."""
    on_cpu = [r for r in rows if (r.environment.get("threads"), r.environment.get("clock")) == (1, "process time")]
    on_gpu = [row for row in rows if row.environment.get("clock") == "CUDA events"]
    text = _section(_TEXT, GOALS, on_cpu)
    rates = on_cpu[0].environment if text else {}
    if text and rates["bfloat16_gflops"] < rates["float32_gflops"]:
        text += (
            "\nThat bfloat16 be 2.5 times as fast as float32 cannot be shown on this machine: its matrix products in\n"
            f"bfloat16 run at {rates['bfloat16_gflops'] / rates['float32_gflops']:.2f} times the rate of those in "
            "float32. There `fuse` multiplies in float32,\nwhich the published form does not.\n"
        )
    return "\n".join(section for section in (text, _section(_GPU_TEXT, GPU_GOALS, on_gpu)) if section)


def _section(text: str, goals: Sequence[Goal], rows: Sequence[Row]) -> str:
    table = []
    for goal in goals:
        value = goal.measured(rows)
        if value is None:
            continue
        table.append(
            {
                "": goal.what,
                "goal": f"{goal.sign} {goal.must:,g} {goal.kind}",
                "hoped for": "" if goal.hoped is None else f"{goal.sign} {goal.hoped:,g}",
                "measured": f"{value:,.2f}" if value < 1000 else f"{value:,.0f}",
                "reached": "yes" if goal.reached(value) else "no",
            }
        )
    return f"{text}\n{tabulate(table, headers='keys', tablefmt='github', disable_numparse=True)}\n" if table else ""
