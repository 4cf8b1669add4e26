"""Pictures of what a model sees and of how its training went."""

from .. import needs_detectron2  # noqa: F401
from .draw import PALETTE, class_name, draw_annotations, draw_instances
from .report import write_report

__all__ = ["PALETTE", "class_name", "draw_annotations", "draw_instances", "write_report"]
