"""Operators and small layers that know nothing of branches, pyramids or detectors."""

from .attention import grid_attention
from .deform_attn import DeformAttn, deform_attn
from .ms_deform_attn import MSDeformAttn
from .ska import ska, ska_reference
from .windows import window_partition, window_unpartition

__all__ = [
    "DeformAttn",
    "MSDeformAttn",
    "deform_attn",
    "grid_attention",
    "ska",
    "ska_reference",
    "window_partition",
    "window_unpartition",
]
