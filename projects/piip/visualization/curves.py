"""Curves of a training, from the ``metrics.json`` that Detectron2 writes."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from .draw import PALETTE

__all__ = ["METRICS", "MetricFamily", "final_metrics", "loss_figure", "metric_figure", "read_metrics"]

logger = logging.getLogger(__name__)

Record = dict[str, float]

# Of the palette, what stands out as a thin line on white.
_LINES = [colour for colour in PALETTE if colour not in ("#F0E442", "#BBCC33", "#FFAABB")]
_STYLES = [("black", "o"), ("#0072B2", "s"), ("#D55E00", "^")]
_TASKS = {
    "bbox": "Boxes",
    "segm": "Masks",
    "keypoints": "Keypoints",
    "sem_seg": "Pixels",
    "panoptic_seg": "Segments",
    "classification": "Images",
}


@dataclass(frozen=True)
class MetricFamily:
    """Metrics in percent that evaluators give together.

    Attributes:
        title: how to call them.
        file_name: of the figure.
        label: of its axis.
        numbers: names of the metrics; the first one tells that the family was evaluated.
        curves: those, at most three, that are drawn.
    """

    title: str
    file_name: str
    label: str
    numbers: tuple[str, ...]
    curves: tuple[str, ...]

    def tasks(self, names: Iterable[str]) -> list[str]:
        """The tasks (perhaps with their dataset) that were evaluated so, of the names of all that was recorded."""
        return [task for task, _, kind in (name.rpartition("/") for name in names) if task and kind == self.numbers[0]]


METRICS = (
    MetricFamily(
        "Average precision",
        "ap.png",
        "average precision (%)",
        ("AP", "AP50", "AP75", "APs", "APm", "APl"),
        ("AP", "AP50", "AP75"),
    ),
    MetricFamily(
        "Intersection over union",
        "iou.png",
        "share of pixels (%)",
        ("mIoU", "fwIoU", "mACC", "pACC"),
        ("mIoU", "mACC", "pACC"),
    ),
    MetricFamily(
        "Panoptic quality",
        "pq.png",
        "quality (%)",
        ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
        ("PQ", "SQ", "RQ"),
    ),
    MetricFamily(
        "Accuracy",
        "accuracy.png",
        "share of images (%)",
        ("top1", "top5", "ECE"),
        ("top1", "top5"),
    ),
)


def read_metrics(path: str | os.PathLike) -> list[Record]:
    """Reads the lines of a ``metrics.json``.

    A resumed training repeats iterations; what it writes replaces what was written from there on before. Lines that
    a killed process left unfinished are skipped.

    Returns:
        records in the order of their ``iteration``; empty when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        return []
    records: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            iteration = record["iteration"]
        except (ValueError, KeyError, TypeError):
            if line.strip():
                logger.warning("Line %d of %s is not a record of metrics and is skipped.", number, path)
            continue
        while records and records[-1]["iteration"] > iteration:
            records.pop()
        if records and records[-1]["iteration"] == iteration:
            records[-1].update(record)
        else:
            records.append(record)
    return records


def final_metrics(records: Sequence[Mapping[str, float]]) -> Record:
    """The last value of everything that was recorded."""
    last: Record = {}
    for record in records:
        last.update(record)
    return last


def loss_figure(records: Sequence[Mapping[str, float]]) -> Figure | None:
    """The total loss and its parts, and the learning rate below; None where no loss was recorded."""
    curves = {key: _curve(records, key) for key in _keys(records) if "loss" in key}
    curves = {key: curve for key, curve in curves.items() if curve[0]}
    if not curves:
        return None
    rates = _curve(records, "lr")
    figure = Figure(figsize=(8, 5.6 if rates[0] else 4.4), dpi=150, layout="constrained")
    rows = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1)) if rates[0] else [figure.subplots()]
    _frame(rows[0], "Training loss", "loss")
    total = curves.pop("total_loss", None)
    if total is not None:
        rows[0].plot(*total, color="black", linewidth=2, marker=_marker(total), label=f"total  {total[1][-1]:.3f}")
    # In the order of their final values, as the curves end beside the legend.
    for i, (key, curve) in enumerate(sorted(curves.items(), key=lambda item: -item[1][1][-1])):
        rows[0].plot(
            *curve,
            color=_LINES[i % len(_LINES)],
            linestyle="-" if i < len(_LINES) else "--",
            linewidth=1.5,
            marker=_marker(curve),
            label=f"{key.removeprefix('loss_')}  {curve[1][-1]:.3f}",
        )
    if all(y >= 0 for line in rows[0].lines for y in line.get_ydata()):
        rows[0].set_ylim(bottom=0)
    rows[0].legend(title="last value", **_LEGEND)
    if rates[0]:
        _frame(rows[1], "Learning rate", "")
        rows[1].plot(*rates, color="black", linewidth=1.5, marker=_marker(rates))
        rows[1].set_ylim(bottom=0)
        rows[1].yaxis.set_major_locator(MaxNLocator(nbins=4))
        rows[1].yaxis.set_major_formatter(formatter := ScalarFormatter(useMathText=True))
        formatter.set_powerlimits((-2, 3))
    rows[-1].set_xlabel("iteration", fontsize=11)
    rows[-1].set_xlim(left=0)
    return figure


def metric_figure(records: Sequence[Mapping[str, float]], family: MetricFamily) -> Figure | None:
    """Metrics over the iterations, one panel for each task (boxes, masks, ...); None where none was evaluated."""
    tasks: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for key in _keys(records):
        task, _, kind = key.rpartition("/")
        if task and kind in family.curves and (curve := _curve(records, key))[0]:
            tasks.setdefault(task, {})[kind] = curve
    if not tasks:
        return None
    figure = Figure(figsize=(max(4.6 * len(tasks), 5.5), 4), dpi=150, layout="constrained")
    styles = dict(zip(family.curves, _STYLES, strict=False))
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, (task, curves) in zip(panels, tasks.items(), strict=True):
        dataset, _, kind = task.rpartition("/")
        _frame(axes, f"{_TASKS.get(kind, kind)}{f' on {dataset}' if dataset else ''}", "")
        for name, curve in sorted(curves.items(), key=lambda item: -item[1][1][-1]):
            colour, marker = styles[name]
            axes.plot(
                *curve,
                color=colour,
                marker=marker if len(curve[0]) <= 30 else "",
                markersize=5,
                linewidth=2,
                label=f"{name}  {curve[1][-1]:.1f}",
            )
        axes.set_xlabel("iteration", fontsize=11)
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.legend(fontsize=10, frameon=False, loc="best")
    figure.axes[0].set_ylabel(family.label, fontsize=11)
    return figure


_LEGEND = {
    "loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": 10, "title_fontsize": 10, "frameon": False,
    "alignment": "left",
}  # fmt: skip


def _keys(records: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _curve(records: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Iterations and values, without those that are not finite."""
    points = [(r["iteration"], r[key]) for r in records if isinstance(r.get(key), (int, float))]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]


def _marker(curve: tuple[list[float], list[float]]) -> str:
    """Points are marked while they are few; a single one would not be seen as a line."""
    return "o" if len(curve[0]) <= 3 else ""


def _frame(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=12, loc="left", fontweight="bold")
    axes.set_ylabel(label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
