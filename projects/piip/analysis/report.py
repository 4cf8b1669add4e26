"""The cost of a model as text and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from textwrap import fill
from typing import Any

from tabulate import tabulate

from .complexity import CONVENTIONS, Complexity
from .cost import Cost

__all__ = ["as_data", "as_text"]


def as_text(
    complexity: Complexity, by_papers: Mapping[str, Cost] | None = None, published: Mapping[str, str] | None = None
) -> str:
    """Tables of the true cost and, where it is known, of what the papers count and print.

    Args:
        complexity: the true cost.
        by_papers: what :func:`~piip.analysis.published_cost` returns, or None.
        published: columns ``params_M`` and ``flops_G`` of the table of published models, empty where nothing was
            published, or None.
    """
    height, width = complexity.size
    lines = [f"True cost, input {height} x {width}:", "", _table(complexity.parts), "", fill(CONVENTIONS, 100)]
    if complexity.notes:
        lines += [fill(f"Assumed: {'; '.join(complexity.notes)}.", 100)]
    if by_papers:
        form = "classification form of the backbone, " if "classifier" in by_papers else ""
        lines += ["", f"By the papers' counting ({form}at the model's own resolutions):", ""]
        lines += [_table(by_papers, activations=False)]
        if published:
            params, flops = (published[key] or "-" for key in ("params_M", "flops_G"))
            lines += ["", f"Published: {params} M parameters, {flops} G FLOPs."]
    return "\n".join(lines)


def as_data(
    complexity: Complexity, by_papers: Mapping[str, Cost] | None = None, published: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The same as numbers: parameters, multiply-adds and elements, not millions; null where nothing is known."""
    data: dict[str, Any] = {
        "input_size": list(complexity.size),
        "parts": {name: asdict(cost) for name, cost in complexity.parts.items()},
        "total": asdict(complexity.total),
        "conventions": CONVENTIONS,
        "notes": list(complexity.notes),
        "by_papers": None,
        "published": None,
    }
    if by_papers:
        costs = {**by_papers, "total": Cost.total(by_papers.values())}
        data["by_papers"] = {name: {"params": c.params, "macs": c.macs} for name, c in costs.items()}
    if published:
        data["published"] = {key: float(published[key]) if published[key] else None for key in ("params_M", "flops_G")}
    return data


def _table(parts: Mapping[str, Cost], activations: bool = True) -> str:
    head = ["part", "params (M)", "GMACs"] + ["activations (M)"] * activations
    rows = []
    for name, cost in {**parts, "total": Cost.total(parts.values())}.items():
        numbers = [f"{cost.params / 1e6:,.3f}", f"{cost.macs / 1e9:,.3f}", f"{cost.activations / 1e6:,.3f}"]
        if not cost.macs:
            numbers[1:] = "-", "-"
        rows.append([name, *numbers][: len(head)])
    align = ["left"] + ["right"] * (len(head) - 1)
    lines = tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=align).splitlines()
    lines.insert(-1, lines[1])  # a rule above the total
    return "\n".join(lines)
