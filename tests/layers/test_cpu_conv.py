"""1x1 convolutions as products over all images of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip.layers import PointwiseConv2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_gives_the_numbers_of_the_convolution(batch, bias, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 40, 1, bias=bias).requires_grad_(False)
    x = torch.randn(batch, 24, 5, 7).to(memory_format=layout)
    fast = PointwiseConv2d(conv)
    torch.testing.assert_close(fast(x), conv(x), rtol=1e-5, atol=1e-5)
    assert fast.state_dict().keys() == conv.state_dict().keys()


def test_a_batch_comes_out_channels_last_and_one_image_as_it_came():
    fast = PointwiseConv2d(nn.Conv2d(24, 40, 1).requires_grad_(False))
    x = torch.randn(2, 24, 5, 7)
    assert fast(x).is_contiguous(memory_format=torch.channels_last)
    assert fast(x[:1]).is_contiguous()
    assert fast(x[:0]).shape == (0, 40, 5, 7)


def test_gradients_autocast_and_other_devices_take_the_convolution():
    conv = nn.Conv2d(24, 40, 1).requires_grad_(False)
    fast = PointwiseConv2d(conv)
    x = torch.randn(2, 24, 5, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
    assert torch.equal(grad, expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    assert fast.to("meta")(x.to("meta")).is_meta
    half = PointwiseConv2d(nn.Conv2d(24, 40, 1)).bfloat16()
    assert half(x.detach().bfloat16()).dtype == torch.bfloat16


def test_weights_that_learn_take_the_convolution():
    conv = nn.Conv2d(24, 40, 1)
    x = torch.randn(2, 24, 5, 7)
    PointwiseConv2d(conv)(x).square().sum().backward()
    grad, conv.weight.grad = conv.weight.grad, None
    conv(x).square().sum().backward()
    assert torch.equal(grad, conv.weight.grad)


def test_an_image_without_a_batch():
    conv = nn.Conv2d(24, 40, 1).requires_grad_(False)
    x = torch.randn(24, 5, 7)
    assert torch.equal(PointwiseConv2d(conv)(x), conv(x))
