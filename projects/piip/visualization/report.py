"""The report at the end of a training: curves, pictures and the final numbers in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..checkpoint.files import write_atomically
from ..evaluation.classification import CONFUSION_FILE
from .classification import classified_figure, confusion_figure, confusion_table
from .curves import METRICS, MetricFamily, final_metrics, loss_figure, metric_figure, read_metrics
from .grid import grid_figure, predict_examples

__all__ = ["write_report"]

_CLASSES_SHOWN = 30  # of those with a value each


def write_report(
    output_dir: str | os.PathLike,
    *,
    model: torch.nn.Module,
    data_loader: Iterable[Sequence[Mapping[str, Any]]],
    dataset_name: str,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> Path:
    """Writes ``<output_dir>/report``: curves, ``predictions.png`` and an ``index.md`` with all.

    The curves are ``losses.png`` and, depending on what was evaluated, ``ap.png``, ``iou.png`` or ``accuracy.png``.
    They come from ``<output_dir>/metrics.json``; where it has nothing to show, the index says so. Of classifiers there
    is ``confusion.png``, too, where the evaluator left its matrix under ``<output_dir>/inference``.

    Args:
        output_dir: of the training.
        model: the trained model; its mode and weights are left as they were.
        data_loader: of the test set.
        dataset_name: of the test set in Detectron2's catalogs.
        num_images: pictures of the test set to show.
        score_threshold: detections below are not shown.

    Returns:
        the folder.
    """
    folder = Path(output_dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    records = read_metrics(Path(output_dir) / "metrics.json")
    examples = predict_examples(model, data_loader, dataset_name, num_images, score_threshold)
    predictions = grid_figure(examples) if examples else None
    if classified := None if examples else classified_figure(model, data_loader, dataset_name, num_images):
        predictions = classified

    last = final_metrics(records)
    evaluated = [family for family in METRICS if family.tasks(last)]
    for family in METRICS:
        (folder / family.file_name).unlink(missing_ok=True)  # of an earlier report
    sections = [(f.title, f.file_name, metric_figure(records, f), "It was never a number.") for f in evaluated]
    sections += [
        ("Losses", "losses.png", loss_figure(records), "No loss was recorded."),
        ("Predictions", "predictions.png", predictions, "There are no pictures, or the model has nothing to draw."),
    ]
    lines = ["# Training report", "", *_summary(last, evaluated, dataset_name), ""]
    for title, name, figure, otherwise in sections:
        lines += [f"## {title}", ""]
        if figure is None:
            (folder / name).unlink(missing_ok=True)
            lines += [otherwise, ""]
        else:
            _save(figure, folder / name)
            lines += [f"![{title}]({name})", ""]
    if examples and not any(key.endswith(("/mIoU", "/PQ")) for key in last):
        lines += [f"Shown are detections with a score of at least {score_threshold:g}.", ""]
    lines += _class_table(last)
    lines += _confusion(folder, dataset_name)
    write_atomically(folder / "index.md", lambda f: f.write("\n".join(lines).encode()))
    return folder


def _summary(last: Mapping[str, float], evaluated: Sequence[MetricFamily], dataset_name: str) -> list[str]:
    lines = ["There is no `metrics.json`, so there are no numbers and no curves."]
    if last:
        lines = [f"{int(last['iteration'])} iterations; evaluated on `{dataset_name}`."]
    if not evaluated:
        lines += ["", "No evaluation was recorded."]
    for family in evaluated:
        lines += ["", f"| | {' | '.join(family.numbers)} |", f"|---|{'---:|' * len(family.numbers)}"]
        for task in family.tasks(last):
            lines.append(f"| {task} | {' | '.join(_number(last, f'{task}/{name}') for name in family.numbers)} |")
    return lines


def _class_table(last: Mapping[str, float]) -> list[str]:
    """Intersection over union of every class, worst first."""
    values = {key: value for key, value in last.items() if "/IoU-" in key and value == value}
    if not values:
        return []
    lines = ["## Classes", "", "| class | IoU | accuracy |", "|---|---:|---:|"]
    for key in sorted(values, key=values.__getitem__)[:_CLASSES_SHOWN]:
        name = key.partition("/IoU-")[2]
        lines.append(f"| {name} | {_number(last, key)} | {_number(last, key.replace('/IoU-', '/ACC-'))} |")
    left = len(values) - _CLASSES_SHOWN
    return [*lines, *(["", f"{left} classes with higher values are left out."] if left > 0 else []), ""]


def _confusion(folder: Path, dataset_name: str) -> list[str]:
    """What was taken for what."""
    name, saved = "confusion.png", folder.parent / "inference" / CONFUSION_FILE
    (folder / name).unlink(missing_ok=True)  # of an earlier report
    if not saved.is_file():
        return []
    matrix, metadata = np.load(saved), MetadataCatalog.get(dataset_name)
    lines = ["## Confusion", ""]
    if figure := confusion_figure(matrix, metadata):
        _save(figure, folder / name)
        lines += [f"![Confusion]({name})", ""]
    return [*lines, *confusion_table(matrix, metadata), ""]


def _number(values: Mapping[str, float], key: str) -> str:
    value = values.get(key)
    return "–" if value is None or value != value else f"{value:.2f}"


def _save(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)
    # No version number inside, so that the same figure is the same file.
    write_atomically(path, lambda f: canvas.print_png(f, metadata={"Software": None}))
