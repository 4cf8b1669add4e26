"""Small-kernel aggregation (SKA), the dynamic convolution of LSNet.

Every pixel has its own small depthwise kernel, which channels share: channel ``c`` uses weight channel ``c mod J``.

Source: LSNet (arXiv:2503.23135), Sec. 3.2.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from ..errors import ConfigError
from .exporting import is_exporting
from .kernels import ska_eager
from .kernels.choice import choose
from .kernels.memory import dense_like

__all__ = ["normed_ska", "ska", "ska_reference"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def ska(x: Tensor, w: Tensor) -> Tensor:
    """Sums every pixel's neighbourhood with that pixel's own weights; outside the map are zeros.

    ``out[b, c, y, x] = sum over taps k = ky * ks + kx of x[b, c, y + ky - p, x + kx - p] * w[b, c mod J, k, y, x]``
    with ``p = (ks - 1) / 2``. Sums are in float32 (float64 for float64). Of float16, weights and products are rounded
    to float16 first, as in the released code; of bfloat16, only the weights are. For the backward pass nothing is
    kept but ``x`` and ``w``. Under autocast both are cast to its dtype, so that the float32 result of a normalisation
    can be given as it is.

    Beside what is not finite there may be NaN beyond the reach of a tap, too: at the other side of the map by the C++
    kernels, along its border by those for a GPU.

    Args:
        x: features.
        w: weights of all pixels, of the dtype of ``x``, or float32 for ``x`` of half precision.

    Shape:
        x (B, C, H, W), w (B, J, ks * ks, H, W) with ks odd and J <= C -> (B, C, H, W), of the dtype of ``x`` and
        channels-last if ``x`` is.

    Raises:
        ConfigError: when the shapes, dtypes or devices do not fit each other.
    """
    x, w = _checked(x, w)
    if is_exporting():
        return ska_reference(x, w)  # of operators that ONNX has
    # Rounding is part of the operator; doing it here saves the backward pass from keeping more than is used.
    return _ska(x, w.to(x.dtype))


def normed_ska(x: Tensor, w: Tensor, group_norm: nn.GroupNorm, batch_norm: nn.BatchNorm2d) -> Tensor:
    """What LS convolution computes of a map and its weights in inference, in one operator.

    ``out = x + batch_norm(ska(x, group_norm(w)))``, with the statistics that ``batch_norm`` has collected. Weights go
    through memory twice, for their norm, and maps once: less than half of what operators of their own move. Normalised
    weights and sums stay in float32 (float64 for float64). With gradients, in exported files and in plain PyTorch these
    are the usual operators, which round in between.

    Args:
        x: features.
        w: weights of all pixels before their norm; of channels-last ``x`` fastest where weight channels come last in
            memory.
        group_norm: of the weights, with a group for every weight channel.
        batch_norm: of the sums.

    Shape:
        x (B, C, H, W), w (B, J, ks * ks, H, W) -> (B, C, H, W), of the dtype of ``x`` and channels-last if ``x`` is.

    Raises:
        ConfigError: as :func:`ska`, or when the norms are for other widths, or lack parameters or statistics.
    """
    x, w = _checked(x, w)
    if (group_norm.num_groups, group_norm.num_channels) != (w.shape[1], w.shape[1] * w.shape[2]):
        raise ConfigError(
            f"normed_ska: w has {w.shape[1]} weight channels of {w.shape[2]} taps; the GroupNorm is for "
            f"{group_norm.num_groups} groups in {group_norm.num_channels} channels."
        )
    if batch_norm.num_features != x.shape[1]:
        raise ConfigError(f"normed_ska: x has {x.shape[1]} channels; the BatchNorm is for {batch_norm.num_features}.")
    statistics = batch_norm.running_mean, batch_norm.running_var
    norms = group_norm.weight, group_norm.bias, batch_norm.weight, batch_norm.bias, *statistics
    if any(t is None for t in norms):
        raise ConfigError(
            "normed_ska: the norms need weights and biases, and the BatchNorm statistics; build them with affine=True "
            "and track_running_stats=True."
        )
    eps = group_norm.eps, batch_norm.eps
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, w, *norms))
    if learns or is_exporting():
        return ska_eager.forward_normed(x, w, norms, eps, aggregate=ska)
    return _normed_ska(x, w.to(x.dtype), *norms, *eps)


def ska_reference(x: Tensor, w: Tensor) -> Tensor:
    """The same as :func:`ska`, written for reading: neighbourhoods are laid out, multiplied and summed."""
    (b, c, height, width), (_, j, taps) = x.shape, w.shape[:3]
    groups, ks = math.ceil(c / j), math.isqrt(taps)
    dtype = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    whole = F.pad(x.to(dtype), (0, 0, 0, 0, 0, groups * j - c))
    patches = F.unfold(whole, ks, padding=ks // 2).view(b, groups, j, taps, height, width)
    products = patches * w.to(x.dtype).to(dtype).unsqueeze(1)
    out = products.sum(dim=3, dtype=torch.promote_types(dtype, torch.float32))
    return out.flatten(1, 2)[:, :c].to(x.dtype)


def _checked(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of autocast, where that is on."""
    device = x.device.type
    if not x.is_meta and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, w = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, w))
    _check(x, w)
    return x, w


def _check(x: Tensor, w: Tensor) -> None:
    if x.ndim != 4 or w.ndim != 5:
        raise ConfigError(
            f"ska: x must be (B, C, H, W) and w (B, J, K, H, W); x has shape {tuple(x.shape)}, w {tuple(w.shape)}."
        )
    (b, c, *size), (wb, j, taps, *wsize) = x.shape, w.shape
    if b != wb or size != wsize:
        raise ConfigError(f"ska: x {tuple(x.shape)} and w {tuple(w.shape)} must have the same batch, height and width.")
    if not 1 <= j <= c:
        raise ConfigError(f"ska: w has {j} weight channels for {c} channels of x; give between 1 and {c}.")
    if taps % 2 == 0 or math.isqrt(taps) ** 2 != taps:
        raise ConfigError(f"ska: w has {taps} taps per pixel; give the square of an odd kernel size, such as 9 or 25.")
    if x.device != w.device:
        raise ConfigError(f"ska: x is on {x.device} and w on {w.device}; move them to one device.")
    half = x.dtype in (torch.float16, torch.bfloat16)
    if x.dtype not in _DTYPES or not (w.dtype == x.dtype or (half and w.dtype == torch.float32)):
        raise ConfigError(
            f"ska: x is {x.dtype} and w {w.dtype}; give both the same floating-point dtype (or w in float32 with x in "
            "float16 or bfloat16)."
        )


def _kernels(x: Tensor, w: Tensor) -> ModuleType:
    return choose("ska", x, w) if x.numel() else ska_eager


@torch.library.custom_op("piip::ska", mutates_args=())
def _ska(x: Tensor, w: Tensor) -> Tensor:
    return _kernels(x, w).forward(x, w)


@_ska.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return dense_like(x)


@torch.library.custom_op("piip::ska_backward", mutates_args=())
def _ska_backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return _kernels(x, w).backward(grad, x, w)


@_ska_backward.register_fake
def _(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return dense_like(x), torch.empty_like(w)


@torch.library.custom_op("piip::normed_ska", mutates_args=())
def _normed_ska(
    x: Tensor,
    w: Tensor,
    gain: Tensor,
    bias: Tensor,
    batch_weight: Tensor,
    batch_bias: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    eps: float,
    batch_eps: float,
) -> Tensor:
    norms = gain, bias, batch_weight, batch_bias, batch_mean, batch_var
    return _kernels(x, w).forward_normed(x, w, norms, (eps, batch_eps))


@_normed_ska.register_fake
def _(x: Tensor, *args: object) -> Tensor:
    return dense_like(x)


def _save_inputs(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _ska_backward(grad, *ctx.saved_tensors)


_ska.register_autograd(_gradients, setup_context=_save_inputs)


# One multiply-add per tap and output; the gradients of x and of w are as many each.
@register_flop_formula([torch.ops.piip.ska, torch.ops.piip.normed_ska])
def _flops(x_shape: torch.Size, w_shape: torch.Size, *args, **kwargs) -> int:
    return 2 * math.prod(x_shape) * w_shape[2]


@register_flop_formula(torch.ops.piip.ska_backward)
def _backward_flops(grad_shape: torch.Size, x_shape: torch.Size, w_shape: torch.Size, *args, **kwargs) -> int:
    return 4 * math.prod(x_shape) * w_shape[2]
