"""What a classifier took for what: a matrix, a table of the most frequent mistakes, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import inference_context
from matplotlib.figure import Figure

from .draw import class_name

__all__ = ["classified_figure", "confusion_figure", "confusion_table"]

_MAX_CLASSES = 40  # with more, the names cannot be read
_MISTAKES_SHOWN = 15
_RIGHT, _WRONG = "#0072B2", "#D55E00"


def confusion_figure(matrix: np.ndarray, metadata: Metadata) -> Figure | None:
    """The share of every true class that was taken for every class, with the numbers of images.

    Args:
        matrix: (C, C), images by true and predicted class.
        metadata: gives the names of the classes.

    Returns:
        None where there are more than forty classes.
    """
    count = len(matrix)
    if count > _MAX_CLASSES:
        return None
    names = [class_name(metadata, c) for c in range(count)]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.0, 1.5 + 0.42 * count)
    figure = Figure(figsize=(side + 1, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(count), names)
    axes.set_xlabel("predicted", fontsize=11)
    axes.set_ylabel("true", fontsize=11)
    for true, predicted in np.argwhere(matrix):
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        number = str(matrix[true, predicted])
        axes.text(predicted, true, number, color=colour, ha="center", va="center", fontsize=8)
    figure.colorbar(picture, label="share of the true class (%)", shrink=0.8)
    return figure


def confusion_table(matrix: np.ndarray, metadata: Metadata) -> list[str]:
    """Lines of Markdown with the most frequent mistakes; the first of equally frequent classes first."""
    mistakes = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MISTAKES_SHOWN]
    rows = [
        f"| {class_name(metadata, true)} | {class_name(metadata, predicted)} | {mistakes[true, predicted]} |"
        for true, predicted in zip(*np.unravel_index(order, mistakes.shape), strict=True)
        if mistakes[true, predicted]
    ]
    head = ["Most frequent mistakes:", "", "| true | predicted | images |", "|---|---|---:|"]
    return [*head, *rows] if rows else ["There are no mistakes."]


def classified_figure(
    model: torch.nn.Module,
    data_loader: Iterable[Sequence[Mapping[str, Any]]],
    dataset_name: str,
    num_images: int = 8,
) -> Figure | None:
    """Pictures of a test set as the model gets them, with true and predicted classes.

    Up to half of them are mistakes, where the first eight times ``num_images`` pictures have any.

    Args:
        model: its mode is left as it was.
        data_loader: of the test set, whose items have ``image`` (3, H, W) and ``label``.
        dataset_name: in Detectron2's catalogs, for the class names.
        num_images: how many.

    Returns:
        None when the model is no classifier.
    """
    metadata = MetadataCatalog.get(dataset_name)
    found: list[tuple[np.ndarray, int, int, float]] = []
    with inference_context(model), torch.no_grad():
        for batch in data_loader:
            for item, output in zip(batch, model(batch), strict=True):
                if "scores" not in output:
                    return None
                score, predicted = output["scores"].max(0)
                image = item["image"].permute(1, 2, 0).numpy()
                found.append((image, item["label"], int(predicted), float(score)))
            if len(found) >= 8 * num_images:
                break
    right = [example for example in found if example[1] == example[2]]
    wrong = [example for example in found if example[1] != example[2]]
    shown = wrong[: max(num_images // 2, num_images - len(right))]
    shown += right[: num_images - len(shown)]
    return _pictures(shown, metadata) if shown else None


def _pictures(examples: Sequence[tuple[np.ndarray, int, int, float]], metadata: Metadata) -> Figure:
    columns = min(len(examples), 4)
    rows = -(-len(examples) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (image, true, predicted, score) in zip(panels, examples, strict=False):
        axes.imshow(image, interpolation="nearest")
        named = f"{class_name(metadata, predicted)} ({100 * score:.0f}%)"
        title = named if true == predicted else f"{named}\ninstead of {class_name(metadata, true)}"
        axes.set_title(title, fontsize=10, color=_RIGHT if true == predicted else _WRONG)
    return figure
