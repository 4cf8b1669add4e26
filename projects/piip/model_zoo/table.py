"""MODEL_ZOO.md: the published models, and the costs that we count, from the one table beside this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import PurePosixPath

from omegaconf import OmegaConf
from tabulate import tabulate
from torch import nn

from ..analysis import Complexity, Cost, analyze, build_on_meta, published_cost
from ..errors import ConfigError
from .zoo import get_config, network_of, published

__all__ = ["Measured", "as_data", "as_text", "disagreements", "insert_table", "markdown", "measure", "measure_zoo"]

_METRICS = {"box_AP": "box AP", "mask_AP": "mask AP", "mIoU": "mIoU", "top1": "top-1"}
# Published numbers that no recount gives, and why.
_DEVIATIONS = {
    ("ADE20K-SemanticSegmentation/upernet_internvit_6b_512_80k.py", "params_M"): (
        "the authors' own script does not give the published number either"
    ),
}
# What was counted already, by network and size of the image: several detectors have one backbone.
_measured: dict[tuple[str, tuple[int, int]], Measured] = {}
_START, _END = "<!-- START -->", "<!-- END -->"


@dataclass(frozen=True)
class Measured:
    """What the network of a published model costs, at the resolution of its published numbers.

    Attributes:
        true: a classifier, or the backbone of a detector or segmentor as it runs: with merging and its feature pyramid,
            without the FPN.
        by_papers: the same backbone by the papers' counting; None where that has no rule for one of its branches.
    """

    true: Complexity
    by_papers: Mapping[str, Cost] | None

    @property
    def recounted(self) -> Cost | None:
        """The sum of what the papers count."""
        return None if self.by_papers is None else Cost.total(self.by_papers.values())


@cache  # to load a config takes a while, too
def measure(config: str) -> Measured:
    """Counts a model of :func:`~piip.model_zoo.zoo.published` by the name of its config; takes seconds, remembered."""
    width, _, height = published()[config]["resolutions"].partition("/")[0].partition("x")
    size = (int(height or width), int(width))
    node = network_of(get_config(config).model)
    key = (repr(OmegaConf.to_container(node, resolve=True)), size)
    if key not in _measured:
        _measured[key] = _count(build_on_meta(node), size)
    return _measured[key]


def _count(network: nn.Module, size: tuple[int, int]) -> Measured:
    try:
        by_papers = published_cost(network, size[1])
    except ConfigError:
        by_papers = None
    return Measured(analyze(network, size), by_papers)


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
    """Whether a number rounds, or is cut, to what a table prints.

    The counting scripts print one more digit than the tables, so that a number has been rounded before: 1740.49 is
    1740.5 to the script, and 1741 in the table.
    """
    digits = len(printed.partition(".")[2])
    tenths = round(value * 10 ** (digits + 1))
    return round(float(printed) * 10**digits) in (tenths // 10, (tenths + 5) // 10)


def disagreements(measured: Mapping[str, Measured]) -> tuple[list[str], list[str]]:
    """Published #Params and #FLOPs that the recount does not reproduce to the precision they are printed with.

    Args:
        measured: what :func:`measure_zoo` returns.

    Returns:
        a sentence each: those that nothing explains, and those with a known reason.
    """
    unexplained, explained = [], []
    for config, cost in measured.items():
        row, values = published()[config], _millions(cost.recounted)
        for key, value, unit in zip(("params_M", "flops_G"), values, ("M parameters", "G multiply-adds"), strict=True):
            if not row[key] or (value is not None and _agrees(row[key], value)):
                continue
            recount = "no rule recounts them" if value is None else f"{value:.3f} are recounted"
            sentence = f"{config}: {row[key]} {unit} are published, and {recount}"
            if reason := _DEVIATIONS.get((config, key)):
                explained.append(f"{sentence}: {reason}.")
            else:
                unexplained.append(f"{sentence}.")
    return unexplained, explained


def _millions(cost: Cost | None) -> tuple[float | None, float | None]:
    """Parameters in millions and multiply-adds in billions."""
    return (None, None) if cost is None else (cost.params / 1e6, cost.macs / 1e9)


def as_data(measured: Mapping[str, Measured]) -> dict[str, dict[str, float | None]]:
    """Published, recounted and true numbers of every config, in millions and billions.

    Args:
        measured: what :func:`measure_zoo` returns.
    """
    data = {}
    for config, cost in measured.items():
        row = published()[config]
        columns = zip(("params_M", "flops_G"), _millions(cost.recounted), _millions(cost.true.total), strict=True)
        data[config] = {
            f"{kind}_{key}": value
            for key, recounted, true in columns
            for kind, value in (
                ("published", float(row[key]) if row[key] else None),
                ("recounted", recounted),
                ("true", true),
            )
        }
    return data


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _printed(config: str, cost: Measured, nothing: str) -> list[list[str]]:
    """Published, recounted and true #Params, and the same of #FLOPs, as tables show them."""
    columns = zip(("params_M", "flops_G"), _millions(cost.recounted), _millions(cost.true.total), strict=True)
    return [
        [published()[config][key] or nothing, *(nothing if v is None else _short(v) for v in (recounted, true))]
        for key, recounted, true in columns
    ]


def as_text(measured: Mapping[str, Measured]) -> str:
    """The numbers of :func:`as_data` for reading, published ones as they are printed."""
    head = ["classifier, or backbone only; one multiply-add = 1 FLOP", *("published", "recounted", "true") * 2]
    rows = [["", "#Params (M)", "", "", "#FLOPs (G)", "", ""]]
    rows += [[config, *chain(*_printed(config, cost, "-"))] for config, cost in measured.items()]
    return tabulate(rows, head, disable_numparse=True, colalign=["left"] + ["right"] * 6)


def markdown(measured: Mapping[str, Measured]) -> str:
    """Tables of all published models in Markdown, one per method.

    Args:
        measured: what :func:`measure_zoo` returns.
    """
    methods = dict.fromkeys(row["method"] for row in published().values())
    return "\n\n".join(f"## {method}\n\n{_table(measured, method)}" for method in methods)


def _table(measured: Mapping[str, Measured], method: str) -> str:
    rows = {config: row for config, row in published().items() if row["method"] == method}
    metrics = {key: name for key, name in _METRICS.items() if any(row[key] for row in rows.values())}
    kinds = "published / recounted / true"
    head = [
        *("name", "backbone", "resolutions", "pre-training", "lr sched", "batch", *metrics.values()),
        *(f"#Params (M)<br>{kinds}", f"#FLOPs (G)<br>{kinds}", "weights · log", "source", "note"),
    ]
    lines = [head, ["---"] * len(head)]
    for config, row in rows.items():
        links = [f"`{row['checkpoint']}`"] * bool(row["checkpoint"]) + [f"[log]({row['log']})"] * bool(row["log"])
        lines.append(
            [
                f"[{PurePosixPath(config).stem}](configs/{config})",
                *(row[key] for key in ("backbone", "resolutions", "pretrain", "schedule", "batch_size")),
                *(row[key] or "–" for key in metrics),
                *(" / ".join(numbers) for numbers in _printed(config, measured[config], "–")),
                " · ".join(links) or "–",
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
