"""MODEL_ZOO.md: the published models, and the costs that we count, from the one table beside this file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from tabulate import tabulate

from ..analysis import Complexity, Cost, analyze, build_on_meta, published_cost
from ..errors import ConfigError
from .zoo import get_config, published

__all__ = ["Measured", "as_data", "as_text", "disagreements", "insert_table", "markdown", "measure", "measure_zoo"]

_START, _END = "<!-- START -->", "<!-- END -->"


@dataclass(frozen=True)
class Measured:
    """What the backbone of a published model costs, at the resolution of its published numbers.

    Attributes:
        true: the backbone as it runs: with merging and its feature pyramid, without the FPN.
        by_papers: the same backbone by the papers' counting.
    """

    true: Complexity
    by_papers: Mapping[str, Cost]

    @property
    def recounted(self) -> Cost:
        """The sum of what the papers count."""
        return Cost.total(self.by_papers.values())


@cache
def measure(config: str) -> Measured:
    """Counts a model of :func:`~piip.model_zoo.zoo.published` by the name of its config; takes seconds, remembered."""
    backbone = build_on_meta(get_config(config).model.backbone.bottom_up)
    return Measured(analyze(backbone), published_cost(backbone))


def measure_zoo(progress: Callable[[str], None] = lambda config: None) -> dict[str, Measured]:
    """Counts all published models.

    Args:
        progress: called with the name of the config whose turn it is.
    """
    measured = {}
    for config in published():
        progress(config)
        measured[config] = measure(config)
    return measured


def _agrees(printed: str, value: float) -> bool:
    """Whether a number rounds, or is cut, to what a table prints; true where it prints nothing."""
    if not printed:
        return True
    unit = 10 ** len(printed.partition(".")[2])
    return round(float(printed) * unit) in (round(value * unit), math.floor(value * unit))


def disagreements(measured: Mapping[str, Measured]) -> list[str]:
    """Published #Params and #FLOPs that the recount does not reproduce to the precision they are printed with.

    Args:
        measured: what :func:`measure_zoo` returns.

    Returns:
        a sentence each.
    """
    found = []
    for config, cost in measured.items():
        row = published()[config]
        for printed, value, unit in (
            (row["params_M"], cost.recounted.params / 1e6, "M parameters"),
            (row["flops_G"], cost.recounted.macs / 1e9, "G multiply-adds"),
        ):
            if not _agrees(printed, value):
                found.append(f"{config}: {printed} {unit} are published and {value:.3f} are recounted.")
    return found


def as_data(measured: Mapping[str, Measured]) -> dict[str, dict[str, float | None]]:
    """Published, recounted and true numbers of every config, in millions and billions.

    Args:
        measured: what :func:`measure_zoo` returns.
    """
    data = {}
    for config, cost in measured.items():
        row = published()[config]
        data[config] = {
            "published_params_M": float(row["params_M"]) if row["params_M"] else None,
            "recounted_params_M": cost.recounted.params / 1e6,
            "true_params_M": cost.true.total.params / 1e6,
            "published_flops_G": float(row["flops_G"]) if row["flops_G"] else None,
            "recounted_flops_G": cost.recounted.macs / 1e9,
            "true_flops_G": cost.true.total.macs / 1e9,
        }
    return data


def as_text(measured: Mapping[str, Measured]) -> str:
    """The numbers of :func:`as_data` for reading, published ones as they are printed."""
    head = ["backbone only; one multiply-add = 1 FLOP", *("published", "recounted", "true") * 2]
    rows = [["", "#Params (M)", "", "", "#FLOPs (G)", "", ""]]
    for config, cost in measured.items():
        row = published()[config]
        rows.append(
            [
                config,
                *(row["params_M"] or "-", f"{cost.recounted.params / 1e6:.1f}", f"{cost.true.total.params / 1e6:.1f}"),
                *(row["flops_G"] or "-", f"{cost.recounted.macs / 1e9:.1f}", f"{cost.true.total.macs / 1e9:.1f}"),
            ]
        )
    return tabulate(rows, head, disable_numparse=True, colalign=["left"] + ["right"] * 6)


def markdown(measured: Mapping[str, Measured]) -> str:
    """The table of all published models in Markdown.

    Args:
        measured: what :func:`measure_zoo` returns.
    """
    kinds = "published / recounted / true"
    head = [
        *("name", "backbone", "resolutions", "pre-training", "lr sched", "box AP", "mask AP"),
        *(f"#Params (M)<br>{kinds}", f"#FLOPs (G)<br>{kinds}", "weights · log", "source", "note"),
    ]
    lines = [head, ["---"] * len(head)]
    for config, row in published().items():
        cost = measured[config]
        lines.append(
            [
                f"[{PurePosixPath(config).stem}](configs/{config})",
                *(row[key] for key in ("backbone", "resolutions", "pretrain", "schedule", "box_AP", "mask_AP")),
                f"{row['params_M'] or '–'} / {cost.recounted.params / 1e6:.1f} / {cost.true.total.params / 1e6:.1f}",
                f"{row['flops_G'] or '–'} / {cost.recounted.macs / 1e9:.1f} / {cost.true.total.macs / 1e9:.1f}",
                f"`{row['checkpoint']}` · [log]({row['log']})",
                *(row["source"], row["notes"]),
            ]
        )
    # Not aligned: a new row changes no other line.
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def insert_table(document: str, table: str) -> str:
    """Puts the table between the START and END marks of a Markdown document.

    Raises:
        ConfigError: when a mark is missing.
    """
    before, start, rest = document.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise ConfigError(f"MODEL_ZOO.md has no place for the table; put {_START} and {_END} on lines of their own.")
    return f"{before}{_START}\n{table}\n{_END}{after}"
