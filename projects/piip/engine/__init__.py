"""Training, evaluation and prediction: the loop, its hooks, and what surrounds them."""

from ..env import require_detectron2

require_detectron2()
