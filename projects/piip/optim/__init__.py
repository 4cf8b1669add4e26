"""Parameter groups for optimizers."""

from .layer_decay import layer_decay_groups

__all__ = ["layer_decay_groups"]
