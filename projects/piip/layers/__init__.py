"""Operators and small layers that know nothing of branches, pyramids or detectors."""

from .attention import grid_attention
from .deform_attn import DeformAttn, deform_attn
from .windows import window_partition, window_unpartition

__all__ = ["DeformAttn", "deform_attn", "grid_attention", "window_partition", "window_unpartition"]
