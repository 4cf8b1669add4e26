"""Instances, segments and classes of pixels drawn onto pictures: one style for all, in stills and video.

Every class has a colour of its own, so that the same thing looks the same in every picture, beside its ground truth,
and from one video frame to the next. Detectron2's ``Visualizer`` is not used because it needs OpenCV, which a training
that ends with a report must not, and because its labels cannot be read on small pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from contourpy import LineType, contour_generator
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from PIL import Image
from scipy import ndimage
from torch import Tensor

__all__ = [
    "PALETTE",
    "class_name",
    "draw_annotations",
    "draw_instances",
    "draw_labels",
    "draw_scores",
    "draw_segments",
]

# Told apart with every common kind of colour vision (Okabe and Ito 2008, then Paul Tol's bright ones), and visible on
# photographs.
PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00",
    "#CC79A7", "#332288", "#44BB99", "#AA3377", "#BBCC33", "#FFAABB",
)  # fmt: skip
_DPI = 100
_BACKGROUND = "background"  # a class of pixels that are not painted


def _colour(category: int) -> str:
    """One of the palette, and mixtures of it with black or white for classes beyond it."""
    rounds, index = divmod(category, len(PALETTE))
    if not rounds:
        return PALETTE[index]
    ground, share = (0.0, 1.0)[rounds % 2], 0.65 * 0.8 ** ((rounds - 1) // 2)
    return to_hex([share * value + (1 - share) * ground for value in to_rgb(PALETTE[index])])


def class_name(metadata: Metadata, category: int, kind: str = "thing") -> str:
    """The name of a class, or its number where the dataset does not tell.

    Args:
        kind: ``thing`` for objects, ``stuff`` for pixels.
    """
    names = metadata.get(f"{kind}_classes") or ()
    return names[category] if category < len(names) else f"class {category}"


def draw_instances(image: np.ndarray, instances: Instances, metadata: Metadata, shorter_side: int = 0) -> np.ndarray:
    """Draws detections: boxes, masks where there are any, class names and scores.

    Args:
        image: RGB, uint8.
        instances: with ``pred_boxes``, ``pred_classes`` and ``scores``, perhaps ``pred_masks``; on any device.
        metadata: gives the class names.
        shorter_side: pixels that the shorter side of the result has; 0 leaves the size as it is.

    Shape:
        (H, W, 3) -> the same, or resized in proportion.
    """
    instances = instances.to("cpu")
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return _draw(
        image,
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=list(instances.pred_masks.numpy()) if instances.has("pred_masks") else None,
        classes=classes,
        labels=[f"{class_name(metadata, c)} {100 * s:.0f}%" for c, s in zip(classes, scores, strict=True)],
        shorter_side=shorter_side,
    )


def draw_annotations(
    image: np.ndarray, annotations: Sequence[Mapping[str, Any]], metadata: Metadata, shorter_side: int = 0
) -> np.ndarray:
    """Draws the ground truth of a picture.

    Args:
        image: RGB, uint8.
        annotations: of a dict in Detectron2's dataset format; crowds are left out.
        metadata: gives the class names.
        shorter_side: as in :func:`draw_instances`.
    """
    annotations = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = [_decode(a.get("segmentation"), *image.shape[:2]) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    return _draw(
        image,
        boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        masks=masks,
        classes=classes,
        labels=[class_name(metadata, c) for c in classes],
        shorter_side=shorter_side,
    )


def draw_labels(image: np.ndarray, labels: np.ndarray, metadata: Metadata, shorter_side: int = 0) -> np.ndarray:
    """Draws the class of every pixel: a tint and an outline, and the name of the class where it is widest.

    Args:
        image: RGB, uint8.
        labels: class numbers; pixels that do not count (255), and those of a class called "background", stay bare.
        metadata: gives the names of the classes.
        shorter_side: as in :func:`draw_instances`.

    Shape:
        (H, W, 3), (H, W) -> (H, W, 3), or resized in proportion
    """
    bare = (_BACKGROUND, f"class {metadata.get('ignore_label', 255)}")
    classes = [c for c in np.unique(labels).tolist() if class_name(metadata, c, "stuff") not in bare]
    names = [class_name(metadata, c, "stuff") for c in classes]
    return _draw_areas(image, [labels == c for c in classes], classes, names, shorter_side)


def draw_segments(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    shorter_side: int = 0,
) -> np.ndarray:
    """Draws the segments of panoptic segmentation: a tint, an outline and a name for each.

    Args:
        image: RGB, uint8.
        ids: numbers of segments.
        segments: their ``id``, ``category_id``, ``isthing`` and perhaps ``score``; stuff called "background" stays
            bare.
        metadata: gives the names of the classes.
        shorter_side: as in :func:`draw_instances`.

    Shape:
        (H, W, 3), (H, W) -> (H, W, 3), or resized in proportion
    """
    things = len(metadata.get("thing_classes") or ())
    masks, classes, names = [], [], []
    for segment in segments:
        category, is_thing = segment["category_id"], segment["isthing"]
        name = class_name(metadata, category, "thing" if is_thing else "stuff")
        if (mask := ids == segment["id"]).any() and (is_thing or name != _BACKGROUND):
            masks.append(mask)
            classes.append(category if is_thing else things + category)
            names.append(f"{name} {100 * segment['score']:.0f}%" if "score" in segment else name)
    return _draw_areas(image, masks, classes, names, shorter_side)


def _draw_areas(
    image: np.ndarray, masks: Sequence[np.ndarray], classes: Sequence[int], names: Sequence[str], shorter_side: int
) -> np.ndarray:
    """Areas without frames, with their names where they are widest."""
    return _draw(
        image,
        boxes=np.asarray([2 * _innermost(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
        masks=masks,
        classes=classes,
        labels=names,
        shorter_side=shorter_side,
        frames=False,
    )


def draw_scores(image: np.ndarray, scores: Tensor, metadata: Metadata, shorter_side: int = 0) -> np.ndarray:
    """Writes the likeliest class of a picture and its score into a corner.

    Args:
        image: RGB, uint8.
        scores: of all classes.
        metadata: gives the names of the classes.
        shorter_side: as in :func:`draw_instances`.

    Shape:
        (H, W, 3), (C,) -> (H, W, 3), or resized in proportion
    """
    score, category = (value.item() for value in scores.max(0))
    return _draw(
        image,
        boxes=np.array([[0, 0, image.shape[1], image.shape[0]]], dtype=np.float32),
        masks=None,
        classes=[category],
        labels=[f"{class_name(metadata, category)} {100 * score:.0f}%"],
        shorter_side=shorter_side,
        frames=False,
    )


def _innermost(mask: np.ndarray) -> tuple[float, float]:
    """The point (x, y) of a mask that is farthest from its border."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return x + 0.5, y + 0.5


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """A mask of COCO's polygons or run lengths."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(segmentation).astype(bool)


def _draw(
    image: np.ndarray,
    *,
    boxes: np.ndarray,
    masks: Sequence[np.ndarray | None] | None,
    classes: Sequence[int],
    labels: Sequence[str],
    shorter_side: int,
    frames: bool = True,
) -> np.ndarray:
    height, width = image.shape[:2]
    scale = shorter_side / min(height, width) if shorter_side else 1.0
    out_width, out_height = round(width * scale), round(height * scale)
    if scale != 1:
        image = np.asarray(Image.fromarray(image).resize((out_width, out_height), Image.Resampling.BICUBIC))
    if not len(boxes):
        return image.copy()

    # Agg cuts off fractions of pixels, hence the hundredth more.
    figure = Figure(figsize=((out_width + 0.01) / _DPI, (out_height + 0.01) / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    # Sizes in pixels of the picture that comes out, then in points.
    line = np.clip(0.003 * min(out_width, out_height), 1.2, 4) * 72 / _DPI
    font = np.clip(0.024 * min(out_width, out_height), 11, 30) * 72 / _DPI
    # Small things over large ones.
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    for layer, i in enumerate(order):
        colour = _colour(classes[i])
        if masks is not None and masks[i] is not None:
            _draw_mask(axes, masks[i], colour, line, layer)
        x0, y0, x1, y1 = boxes[i]
        for edge, width, alpha in _cased(colour, line) if frames else ():
            box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=width, alpha=alpha)
            box.set_zorder(2 + layer)
            axes.add_patch(box)
    taken: list[tuple[float, ...]] = []
    for i in order[::-1]:
        _draw_label(axes, labels[i], boxes[i] * scale, _colour(classes[i]), font, taken, scale)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _draw_mask(axes: Axes, mask: np.ndarray, colour: str, line: float, layer: int) -> None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, left = rows[0], columns[0]
    # A frame of zeros closes the outline; values stand for the centres of pixels.
    crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float32)
    y, x = np.arange(crop.shape[0]) + top - 0.5, np.arange(crop.shape[1]) + left - 0.5
    # Holes are traced the other way round than outlines, so the rule of filling leaves them open.
    outlines = contour_generator(x, y, crop, line_type=LineType.Separate).lines(0.5)
    path = Path.make_compound_path(*(Path(points, closed=True) for points in outlines))
    axes.add_patch(PathPatch(path, facecolor=colour, edgecolor="none", alpha=0.45, zorder=2 + layer))
    for edge, width, alpha in _cased(colour, 1.3 * line):
        axes.add_patch(PathPatch(path, fill=False, edgecolor=edge, linewidth=width, alpha=alpha, zorder=2 + layer))


def _cased(colour: str, line: float) -> list[tuple[str, float, float]]:
    """Colour, width and opacity of the strokes of a line: a dark rim below keeps it visible on its own colour."""
    return [("black", line + 1.0, 0.4), (colour, line, 1.0)]


def _draw_label(
    axes: Axes,
    label: str,
    box: np.ndarray,
    colour: str,
    font: float,
    taken: list[tuple[float, ...]],
    scale: float,
) -> None:
    """Writes the label at a corner of its box, where it hides the fewest others; adds its place to ``taken``."""
    red, green, blue = to_rgb(colour)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    text = axes.text(
        0, 0, label, fontsize=font, color="white" if dark else "black", va="top", ha="left", zorder=1000,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.12 * font},
    )  # fmt: skip
    extent = text.get_window_extent(axes.figure.canvas.get_renderer())
    pad = 0.12 * font * _DPI / 72
    w, h = extent.width + 2 * pad, extent.height + 2 * pad
    out_width, out_height = axes.bbox.width, axes.bbox.height
    x0, y0, x1, y1 = box
    wanted = [(x0 - w / 2, y0 - h / 2)] if x0 == x1 else []  # centred on a point
    places = []
    for x, y in [*wanted, (x0, y0 - h), (x1 - w, y0 - h), (x0, y1), (x1 - w, y1), (x0, y0), (x0, y1 - h)]:
        inside = min(max(x, 0), max(out_width - w, 0)), min(max(y, 0), max(out_height - h, 0))
        hidden = sum(_overlap((*inside, w, h), other) for other in taken)
        moved = abs(inside[0] - x) + abs(inside[1] - y)
        places.append((hidden > 0.05 * w * h, moved > 0.5 * h, hidden, len(places), inside))
    x, y = min(places)[-1]
    taken.append((x, y, w, h))
    text.set_position(((x + pad) / scale, (y + pad) / scale))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The common area of two rectangles (x, y, width, height)."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)
