"""The operator of deformable attention: bilinear samples of maps at given places, weighted and added up.

Source: Deformable DETR (arXiv:2010.04159), Eq. 2-3; PIIP (arXiv:2501.07783) uses one level, 4 points per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..errors import ConfigError
from .exporting import is_exporting
from .kernels import deform_attn_eager
from .kernels.choice import choose

__all__ = ["deform_attn", "deform_attn_reference"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Samples every level at the given places and adds up the weighted samples.

    Sampling is bilinear with zeros outside the map; a location of 0 is the outer edge of the first pixel, 1 the
    outer edge of the last one (``align_corners=False``). Locations, weights and sums are in float32 (float64 for
    float64) whatever the dtype of the values, which is never converted as a whole. For the backward pass nothing is
    kept but the arguments. Under autocast the values are cast to its dtype.

    Args:
        value: projected features of all levels, one level after the other.
        spatial_shapes: ``(h, w)`` of every level.
        sampling_locations: where to sample, ``(x, y)`` in units of the level's width and height; float32, or float64
            for values of float64.
        attention_weights: weight of every sample; of the dtype of the locations or of the values.

    Shape:
        value (B, sum h*w, M, D), sampling_locations (B, Q, M, L, P, 2), attention_weights (B, Q, M, L, P)
        -> (B, Q, M * D), of the dtype of ``value``, for M heads of D channels, L levels and P points.

    Raises:
        ConfigError: when the shapes, dtypes or devices do not fit each other.
    """
    device = value.device.type
    if not value.is_meta and torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        value = value.to(torch.get_autocast_dtype(device))
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if is_exporting():
        # Of operators that ONNX has.
        return deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)
    sizes = [side for shape in spatial_shapes for side in shape]
    return _deform_attn(value, sampling_locations, attention_weights.to(sampling_locations.dtype), sizes)


def deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same as :func:`deform_attn`, written for reading: all samples are laid out, weighted and summed."""
    b, _, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    # Heads move to the batch: grid_sample then reads one (D, h, w) map per image and head.
    levels = value.to(sampling_locations.dtype).split([h * w for h, w in spatial_shapes], dim=1)
    grids = sampling_locations.mul(2).sub(1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P)
    out = torch.zeros((), dtype=grids.dtype, device=value.device)
    for level, (x, (h, w)) in enumerate(zip(levels, spatial_shapes, strict=True)):
        x = x.permute(0, 2, 3, 1).reshape(b * heads, dim, h, w)
        sampled = F.grid_sample(
            x, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B*M, D, Q, P)
        out = out + (sampled * weights[:, None, :, level]).sum(-1)
    return out.view(b, heads * dim, queries).transpose(1, 2).to(value.dtype)


def _check(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    shapes = f"value {tuple(value.shape)}, locations {tuple(locations.shape)}, weights {tuple(weights.shape)}"
    if (value.ndim, locations.ndim, weights.ndim) != (4, 6, 5):
        raise ConfigError(
            "deform_attn: value must be (B, N, M, D), sampling_locations (B, Q, M, L, P, 2) and attention_weights "
            f"(B, Q, M, L, P); given are {shapes}."
        )
    b, cells, heads, dim = value.shape
    wb, _, wm, levels, points = weights.shape
    if locations.shape != (*weights.shape, 2) or (wb, wm) != (b, heads) or min(heads, dim, levels, points) < 1:
        raise ConfigError(
            f"deform_attn: {shapes} must agree in batch, queries, heads, levels and points, of which only the first "
            "two may be 0."
        )
    if (
        any(len(shape) != 2 or any(side < 1 for side in shape) for shape in spatial_shapes)
        or len(spatial_shapes) != levels
    ):
        raise ConfigError(
            f"deform_attn: spatial_shapes {list(spatial_shapes)} must be a positive height and width for each of the "
            f"{levels} levels."
        )
    if sum(h * w for h, w in spatial_shapes) != cells:
        raise ConfigError(
            f"deform_attn: levels of {list(spatial_shapes)} have {sum(h * w for h, w in spatial_shapes)} cells, but "
            f"value has {cells}."
        )
    if not value.device == locations.device == weights.device:
        raise ConfigError(
            f"deform_attn: value is on {value.device}, locations on {locations.device} and weights on "
            f"{weights.device}; move them to one device."
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    if value.dtype not in _DTYPES or locations.dtype != dtype or weights.dtype not in (dtype, value.dtype):
        raise ConfigError(
            f"deform_attn: value is {value.dtype}, locations are {locations.dtype} and weights {weights.dtype}; give "
            "values of a floating-point dtype, locations in float32 (float64 with float64: half precision would miss "
            "the cells) and weights like either."
        )


def _kernels(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> ModuleType:
    if not locations.numel():
        return deform_attn_eager
    return choose("deform_attn", value, locations, weights, tuple(sizes))


@torch.library.custom_op("piip::deform_attn", mutates_args=())
def _deform_attn(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return _kernels(value, locations, weights, sizes).forward(value, locations, weights, sizes)


@_deform_attn.register_fake
def _(value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("piip::deform_attn_backward", mutates_args=())
def _deform_attn_backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels(value, locations, weights, sizes).backward(grad, value, locations, weights, sizes)


@_deform_attn_backward.register_fake
def _(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (value, locations, weights))


def _save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_deform_attn_backward(grad, *ctx.saved_tensors, ctx.sizes), None


_deform_attn.register_autograd(_gradients, setup_context=_save_inputs)


# Five multiply-adds per sampled value, four taps and the attention weight; gradients of values and of samples are as
# many each.
@register_flop_formula(torch.ops.piip.deform_attn)
def _flops(value_shape: torch.Size, locations_shape: torch.Size, weights_shape: torch.Size, *args, **kwargs) -> int:
    return 10 * math.prod(weights_shape) * value_shape[-1]


@register_flop_formula(torch.ops.piip.deform_attn_backward)
def _backward_flops(
    grad_shape: torch.Size,
    value_shape: torch.Size,
    locations_shape: torch.Size,
    weights_shape: torch.Size,
    *args,
    **kwargs,
) -> int:
    return 20 * math.prod(weights_shape) * value_shape[-1]
