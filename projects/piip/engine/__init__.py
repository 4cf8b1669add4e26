"""Training, evaluation and prediction: the loop, its hooks, and what surrounds them."""

from .. import needs_detectron2  # noqa: F401
