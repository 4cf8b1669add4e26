"""What a model costs: parameters, multiply-adds and activations, truly and by the papers' counting."""

from .. import needs_detectron2  # noqa: F401
from ..modeling.without_weights import build_on_meta
from .complexity import Complexity, analyze, natural_size
from .cost import Cost
from .published import published_cost

__all__ = ["Complexity", "Cost", "analyze", "build_on_meta", "natural_size", "published_cost"]
