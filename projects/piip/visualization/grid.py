"""A grid of pictures: ground truth beside prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from matplotlib.figure import Figure
from PIL import Image

from ..data.panoptic import read_segments
from .draw import draw_annotations, draw_instances, draw_labels, draw_segments

__all__ = ["Example", "grid_figure", "predict_examples"]

_PANEL_PIXELS = 340  # shorter side of a drawn picture; fewer make its labels larger


@dataclass
class Example:
    """A picture with its ground truth and with its prediction drawn on it (RGB, uint8).

    Attributes:
        title: how to call it.
        found: number of objects predicted, of segments or of classes.
    """

    title: str
    truth: np.ndarray
    prediction: np.ndarray
    found: int


def predict_examples(
    model: torch.nn.Module,
    data_loader: Iterable[Sequence[Mapping[str, Any]]],
    dataset_name: str,
    num_images: int = 8,
    score_threshold: float = 0.5,
) -> list[Example]:
    """Predicts the first pictures of a test set and draws them.

    Args:
        model: one of Detectron2's; its mode is left as it was.
        data_loader: of the test set, whose items name ``file_name`` and ``image_id``.
        dataset_name: in Detectron2's catalogs, for the ground truth and the class names.
        num_images: how many.
        score_threshold: detections below are not drawn.

    Returns:
        one example per picture; none when the model predicts neither instances nor segments nor classes of pixels.
    """
    metadata = MetadataCatalog.get(dataset_name)
    pairs: list[tuple[Mapping[str, Any], Instances | np.ndarray | tuple]] = []
    with inference_context(model), torch.no_grad():
        for batch in data_loader:
            batch = batch[: num_images - len(pairs)]
            found = [_shown(output) for output in model(batch)]
            pairs += [pair for pair in zip(batch, found, strict=True) if pair[1] is not None]
            if len(pairs) >= num_images or not pairs:
                break
    if not pairs:
        return []
    truth = {item["file_name"]: item for item in DatasetCatalog.get(dataset_name)}
    return [_example(item, found, truth[item["file_name"]], metadata, score_threshold) for item, found in pairs]


def _shown(output: Mapping[str, Any]) -> Instances | np.ndarray | tuple | None:
    """What of a model's output is drawn: segments with their numbers, instances, or else a label map."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return ids.cpu().numpy(), segments
    if "instances" in output:
        return output["instances"].to("cpu")
    return output["sem_seg"].argmax(0).cpu().numpy() if "sem_seg" in output else None


def _example(
    item: Mapping[str, Any],
    found: Instances | np.ndarray | tuple,
    truth: Mapping[str, Any],
    metadata: Metadata,
    score_threshold: float,
) -> Example:
    image = read_image(item["file_name"], format="RGB")
    if isinstance(found, np.ndarray):
        with Image.open(truth["sem_seg_file_name"]) as file:
            labels = np.asarray(file)
        return Example(
            title=Path(item["file_name"]).name,
            truth=draw_labels(image, labels, metadata, _PANEL_PIXELS),
            prediction=draw_labels(image, found, metadata, _PANEL_PIXELS),
            found=len(np.unique(found)),
        )
    if isinstance(found, tuple):
        true = read_segments(truth["pan_seg_file_name"]), truth["segments_info"]
        return Example(
            title=Path(item["file_name"]).name,
            truth=draw_segments(image, *true, metadata, _PANEL_PIXELS),
            prediction=draw_segments(image, *found, metadata, _PANEL_PIXELS),
            found=len(found[1]),
        )
    found = found[found.scores >= score_threshold]
    return Example(
        title=f"image {item['image_id']}",
        truth=draw_annotations(image, truth.get("annotations", ()), metadata, _PANEL_PIXELS),
        prediction=draw_instances(image, found, metadata, _PANEL_PIXELS),
        found=len(found),
    )


def grid_figure(examples: Sequence[Example]) -> Figure:
    """Arranges pairs in two columns of pairs, or in one when they are few."""
    pairs_per_row = 1 if len(examples) < 3 else 2
    rows = math.ceil(len(examples) / pairs_per_row)
    heights = [e.truth.shape[0] / e.truth.shape[1] for e in examples]
    row_heights = [max(heights[i : i + pairs_per_row]) for i in range(0, len(examples), pairs_per_row)]
    width = 3.2  # inches of a panel
    figure = Figure(figsize=(2 * pairs_per_row * width, sum(row_heights) * width + 0.3 * rows + 0.4), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    panels = figure.subplots(rows, 2 * pairs_per_row, squeeze=False, height_ratios=row_heights)
    for axes in panels.flat:
        axes.axis("off")
    for i, example in enumerate(examples):
        row, column = divmod(i, pairs_per_row)
        for axes, picture, kind in zip(
            panels[row, 2 * column : 2 * column + 2],
            (example.truth, example.prediction),
            ("ground truth", "prediction" if example.found else "nothing predicted"),
            strict=True,
        ):
            axes.imshow(picture, interpolation="antialiased")
            axes.set_title(f"{example.title} · {kind}", fontsize=10, pad=4)
    return figure
