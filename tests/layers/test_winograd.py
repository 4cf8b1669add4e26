"""3x3 convolutions by Winograd's algorithm: the numbers of PyTorch's convolution, and when it is not used."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from piip.layers import PointwiseConv2d, WinogradConv2d, winograd

OURS = "piip::winograd_conv2d"


def made(in_channels: int = 192, out_channels: int = 224, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, **kwargs).requires_grad_(False)


def operators(run) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        run()
    return {event.name for event in profile.events()}


# One strip of tiles and several, sides that are no multiples of a tile, one column, and more images than tiles at once.
@pytest.mark.parametrize("shape", [(1, 24, 24), (2, 25, 27), (1, 130, 1), (1, 66, 70), (300, 4, 4), (3, 14, 13)])
@pytest.mark.parametrize("bias", [True, False])
def test_gives_the_numbers_of_the_convolution(shape, bias):
    conv = made(bias=bias)
    batch, *size = shape
    x = torch.randn(batch, 192, *size)
    fast = WinogradConv2d(conv)
    expected = nn.functional.conv2d(
        x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1
    )
    for image in (x, x.to(memory_format=torch.channels_last)):
        out = fast(image)
        assert out.shape == expected.shape
        assert out.dtype == x.dtype
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert OURS in operators(lambda: fast(x))


def test_few_tiles_and_empty_batches_are_convolved_directly():
    conv = made()
    fast = WinogradConv2d(conv)
    x = torch.randn(1, 192, 7, 9)
    assert "aten::conv2d" in operators(lambda: fast(x))
    assert torch.equal(fast(x), conv(x).contiguous(memory_format=torch.channels_last))
    assert fast(x[:0]).shape == (0, 224, 7, 9)


@pytest.mark.parametrize(
    ("change", "suits"),
    [
        ({}, True),
        ({"bias": False}, True),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"padding": 0}, False),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"padding_mode": "reflect"}, False),
        ({"out_channels": 64}, False),
        ({"device": "meta"}, False),
    ],
)
def test_suits_wide_plain_convolutions_on_a_cpu(change, suits):
    arguments = {"in_channels": 192, "out_channels": 192, "kernel_size": 3, "padding": 1, **change}
    assert WinogradConv2d.suits(nn.Conv2d(**arguments)) == suits
    assert WinogradConv2d.suits(Conv2d(**arguments)) == suits


def test_does_not_suit_what_others_have_changed():
    hooked, normed = made(), nn.utils.spectral_norm(made().requires_grad_(True))
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    assert not any(WinogradConv2d.suits(conv) for conv in (hooked, normed, WinogradConv2d(made()), nn.Linear(8, 8)))


def test_gradients_other_dtypes_and_devices_take_the_convolution():
    conv = made()
    fast = WinogradConv2d(conv)
    x = torch.randn(1, 192, 24, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
    assert torch.equal(grad, expected)
    learning = WinogradConv2d(made().requires_grad_(True))
    learning(x.detach()).sum().backward()
    assert learning.weight.grad is not None
    with torch.no_grad():
        assert OURS in operators(lambda: fast(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(x).dtype == torch.bfloat16
    assert fast.to("meta")(x.to("meta")).is_meta


@pytest.mark.parametrize("lacks", [False, True])
def test_half_precision_only_where_the_processor_has_no_instructions_for_it(monkeypatch, lacks):
    monkeypatch.setattr(winograd, "lacks_instructions", lambda dtype: lacks and dtype == torch.bfloat16)
    conv = made().bfloat16()
    assert WinogradConv2d.suits(conv) is lacks
    half = WinogradConv2d(conv)
    half.load_state_dict(half.state_dict())
    x = torch.randn(1, 192, 24, 24).bfloat16()
    assert (OURS in operators(lambda: half(x))) is lacks
    out, exact = half(x), conv.double()(x.double())
    assert out.dtype == torch.bfloat16
    assert (out - exact).norm() <= 2e-3 * exact.norm()


def test_what_follows_from_the_weights_changes_with_their_type_and_device():
    fast = WinogradConv2d(made()).bfloat16().float()
    x = torch.randn(1, 192, 24, 24)
    assert OURS in operators(lambda: fast(x))
    expected = nn.functional.conv2d(x, fast.weight, fast.bias, padding=1)
    assert (fast(x) - expected).norm() <= 1e-5 * expected.norm()
    assert fast.to("meta").prepared is None


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("kind", "size"), [(WinogradConv2d, 3), (PointwiseConv2d, 1)])
def test_a_state_dict_has_the_weights_alone_and_renews_what_follows_from_them(kind, size, assign):
    first, second = (nn.Conv2d(192, 192, size, padding=size // 2).requires_grad_(False) for _ in range(2))
    fast = kind(first)
    assert fast.state_dict().keys() == second.state_dict().keys()
    whole = nn.Sequential(fast)
    whole.load_state_dict(nn.Sequential(second).state_dict(), assign=assign)
    x = torch.randn(2, 192, 24, 24)
    torch.testing.assert_close(whole(x), second(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 25, 27), (5, 14, 14), (1, 5, 6)])
def test_compilers_are_told_the_true_layout(shape):
    fast, x = WinogradConv2d(made()), torch.randn(shape[0], 192, *shape[1:])
    arguments = (x, fast.weight, fast.prepared, fast.bias)
    with FakeTensorMode() as mode:
        told = torch.ops.piip.winograd_conv2d(*(mode.from_tensor(t) for t in arguments))
    assert told.stride() == fast(x).stride()
    assert told.shape == fast(x).shape


def test_counts_as_a_convolution():
    conv, x = made(), torch.randn(2, 192, 24, 25)
    counts = []
    for layer in (conv, WinogradConv2d(conv)):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("size", [(24, 24), (6, 10)])
def test_operator_is_registered_as_torch_wants_it(size):
    fast = WinogradConv2d(made())
    arguments = (torch.randn(1, 192, *size), fast.weight, fast.prepared, fast.bias)
    torch.library.opcheck(torch.ops.piip.winograd_conv2d.default, arguments)
