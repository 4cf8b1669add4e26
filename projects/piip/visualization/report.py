"""The report at the end of a training: curves, pictures and the final numbers in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..checkpoint.files import write_atomically
from .curves import ap_figure, final_metrics, loss_figure, read_metrics
from .grid import grid_figure, predict_examples

__all__ = ["write_report"]

_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def write_report(
    output_dir: str | os.PathLike,
    *,
    model: torch.nn.Module,
    data_loader: Iterable[Sequence[Mapping[str, Any]]],
    dataset_name: str,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> Path:
    """Writes ``<output_dir>/report``: ``losses.png``, ``ap.png``, ``predictions.png`` and an ``index.md`` with all.

    The curves come from ``<output_dir>/metrics.json``; where it has nothing to show, the index says so.

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

    sections = [
        ("Average precision", "ap.png", ap_figure(records), "No evaluation was recorded."),
        ("Losses", "losses.png", loss_figure(records), "No loss was recorded."),
        ("Predictions", "predictions.png", predictions, "There are no pictures, or the model has no instances."),
    ]
    lines = ["# Training report", "", *_summary(records, dataset_name), ""]
    for title, name, figure, otherwise in sections:
        lines += [f"## {title}", ""]
        if figure is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier report
            lines += [otherwise, ""]
        else:
            _save(figure, folder / name)
            lines += [f"![{title}]({name})", ""]
    if predictions is not None:
        lines += [f"Shown are detections with a score of at least {score_threshold:g}.", ""]
    write_atomically(folder / "index.md", lambda f: f.write("\n".join(lines).encode()))
    return folder


def _summary(records: Sequence[Mapping[str, float]], dataset_name: str) -> list[str]:
    if not records:
        return ["There is no `metrics.json`, so there are no numbers and no curves."]
    last = final_metrics(records)
    lines = [f"{int(last['iteration'])} iterations; evaluated on `{dataset_name}`."]
    tasks = [key.removesuffix("/AP") for key in last if key.endswith("/AP")]
    if tasks:
        lines += ["", f"| | {' | '.join(_NUMBERS)} |", f"|---|{'---:|' * len(_NUMBERS)}"]
        lines += [f"| {task} | {' | '.join(_number(last, f'{task}/{name}') for name in _NUMBERS)} |" for task in tasks]
    return lines


def _number(values: Mapping[str, float], key: str) -> str:
    value = values.get(key)
    return "–" if value is None or value != value else f"{value:.2f}"


def _save(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)
    # No version number inside, so that the same figure is the same file.
    write_atomically(path, lambda f: canvas.print_png(f, metadata={"Software": None}))
