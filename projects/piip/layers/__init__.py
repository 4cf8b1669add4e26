"""Operators and small layers that know nothing of branches, pyramids or detectors."""

from .attention import grid_attention
from .cpu_conv import PointwiseConv2d
from .cpu_half import Float32Conv2d, Float32Linear
from .deform_attn import DeformAttn
from .ms_deform_attn import MSDeformAttn
from .sampling import deform_attn, deform_attn_reference
from .ska import normed_ska, ska, ska_reference
from .windows import window_partition, window_unpartition
from .winograd import WinogradConv2d

__all__ = [
    "DeformAttn",
    "Float32Conv2d",
    "Float32Linear",
    "MSDeformAttn",
    "PointwiseConv2d",
    "WinogradConv2d",
    "deform_attn",
    "deform_attn_reference",
    "grid_attention",
    "normed_ska",
    "ska",
    "ska_reference",
    "window_partition",
    "window_unpartition",
]
