"""Pictures of what a model sees and of how its training went."""

from .. import needs_detectron2  # noqa: F401
from .answers import Answers, answers_of
from .draw import PALETTE, class_name, draw_annotations, draw_instances, draw_labels, draw_scores, draw_segments
from .report import write_report

__all__ = [
    "PALETTE",
    "Answers",
    "answers_of",
    "class_name",
    "draw_annotations",
    "draw_instances",
    "draw_labels",
    "draw_scores",
    "draw_segments",
    "write_report",
]
