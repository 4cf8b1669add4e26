"""Accuracy as published against time as measured."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..model_zoo.zoo import published
from .backbones import PEER_ACCURACY
from .promise import comparisons
from .records import Row, grouped

__all__ = ["accuracy_figure"]

Points = dict[str, tuple[float, float]]

_UNIT = "repvit_m0_9"  # among the peers of every LSNet


def accuracy_figure(rows: Sequence[Row]) -> Figure | None:
    """PIIP's box AP and LSNet's top-1 against time relative to a peer; None when no such rows are there.

    Of rows of several devices and types those that are like the first.
    A PIIP is beside the single ViT of the same turns, an LSNet beside a peer that is in the turns of all LSNets.
    """
    rows = [row for row in rows if row.suite == "backbones"]
    rows = [row for row in rows if row.key[3:] == rows[0].key[3:]]
    panels = [
        (
            "Mask R-CNN 1x on COCO",
            "box AP, published",
            "time of the backbone with FPN / that of the single ViT",
            _detectors(rows),
        ),
        ("ImageNet at 224", "top-1, published", f"time of eight images / {_UNIT}'s", _classifiers(rows)),
    ]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        return None
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, (title, vertical, horizontal, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.set(title=title, xlabel=horizontal, ylabel=vertical)
        _scatter(axes, points)
    return figure


def _scatter(axes: Axes, points: Points) -> None:
    width, height = (max(values) - min(values) for values in zip(*points.values(), strict=True))
    for name, (x, y) in points.items():
        ours = name.startswith(("PIIP", "LSNet"))
        axes.plot(x, y, "o" if ours else "s", color="#D55E00" if ours else "#0072B2")
        # Beside each other, as ours and others often are near the same point.
        covered = any(0 < u - x < width / 10 and abs(v - y) < height / 20 for u, v in points.values())
        place = {"xytext": (0, -7), "ha": "center", "va": "top"}
        if not ours:
            place = {"xytext": (-7 if covered else 7, 0), "ha": "right" if covered else "left", "va": "center"}
        axes.annotate(name, (x, y), textcoords="offset points", fontsize=8, **place)
    axes.margins(0.3, 0.15)
    axes.grid(alpha=0.3)


def _detectors(rows: Sequence[Row]) -> Points:
    points = {}
    for pair in comparisons(rows):
        one, other = pair.published
        if one.get("box_AP") and other.get("box_AP"):
            points[pair.vit.name.split(",")[0]] = 1.0, float(other["box_AP"])
            points[pair.piip.case.split(" beside ")[0]] = pair.vit.ratio / pair.piip.ratio, float(one["box_AP"])
    return points


def _classifiers(rows: Sequence[Row]) -> Points:
    points: Points = {}
    for case, group in grouped(rows, lambda row: row.case).items():
        # The faster one of both orders in memory, of all.
        speeds: dict[str, float] = {}
        for row in group:
            name = row.name.removesuffix(", channels last")
            speeds[name] = max(speeds.get(name, 0), row.ratio)
        if not case.startswith("lsnet") or " B8 " not in case or _UNIT not in speeds:
            continue
        accuracies = dict(PEER_ACCURACY)
        entry = published()[f"ImageNet-Classification/{case.split()[0]}_300ep.py"]
        accuracies["kernels, fused"] = float(entry["top1"])
        for name in speeds.keys() & accuracies.keys():
            shown = f"LSNet-{case[6].upper()}" if name == "kernels, fused" else name
            points[shown] = speeds[_UNIT] / speeds[name], accuracies[name]
    return dict(sorted(points.items()))
