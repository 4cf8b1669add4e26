"""Parameter groups and schedules for optimizers."""

from .layer_decay import layer_decay_groups
from .schedule import PolynomialDecay

__all__ = ["PolynomialDecay", "layer_decay_groups"]
