"""Weights: where they come from, what format they have, and how they get into a model."""

from .. import needs_detectron2  # noqa: F401
from .build import build_from_official
from .convert import to_official
from .load import LoadReport, load_official, load_pretrained, load_weights

__all__ = ["LoadReport", "build_from_official", "load_official", "load_pretrained", "load_weights", "to_official"]
