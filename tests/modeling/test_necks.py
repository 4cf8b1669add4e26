"""The neck of DINO: one width, one more level, the padding of the backbone."""

import pytest
import torch

from piip.errors import ConfigError
from piip.modeling import PIIP, ChannelMapper, ViTBranch
from piip.modeling.necks import Doubling


@pytest.fixture
def pyramid():
    torch.manual_seed(0)
    branches = [ViTBranch(width, 2, 2, pretrain_img_size=64) for width in (32, 64)]
    return PIIP(branches, [96, 64], 2, {"num_heads": 2}, out_features=["c3", "c4", "c5"], size_divisibility=96)


def test_levels_of_one_width(pyramid):
    neck = ChannelMapper(pyramid, ["c3", "c4", "c5"], 128, 5)
    out = neck(torch.randn(2, 3, 96, 192))
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        "p3": (2, 128, 12, 24),
        "p4": (2, 128, 6, 12),
        "p5": (2, 128, 3, 6),
        "p6": (2, 128, 2, 3),
        "p7": (2, 128, 1, 2),
    }
    assert {name: (s.channels, s.stride) for name, s in neck.output_shape().items()} == {
        f"p{k}": (128, 2**k) for k in range(3, 8)
    }
    assert neck.size_divisibility == 96


def test_levels_are_normalised_and_the_further_one_comes_from_the_backbone(pyramid):
    neck = ChannelMapper(pyramid, ["c3", "c4", "c5"], 64, 4)
    image = torch.randn(1, 3, 96, 96)
    features, out = pyramid(image), neck(image)
    assert out["p3"].min() < 0  # no activation
    groups = out["p3"].reshape(32, -1)
    torch.testing.assert_close(groups.mean(1), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(out["p6"], neck.extra[0](features["c5"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {x.dtype for x in neck(image).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": ["c2", "c3"]}, r"in_features=\['c2', 'c3'\] must be some of \['c3', 'c4', 'c5'\]"),
        ({"in_features": ["c3", "c4"], "num_outputs": 1}, "num_outputs=1 must be at least 2"),
        ({"in_features": ["c3"], "out_channels": 48}, "out_channels=48"),
    ],
)
def test_refused_arguments(pyramid, arguments, message):
    with pytest.raises(ConfigError, match=message):
        ChannelMapper(pyramid, **arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubling_is_a_transposed_convolution(memory_format):
    torch.manual_seed(0)
    layer, plain = Doubling(6, 10).double(), torch.nn.ConvTranspose2d(6, 10, 2, stride=2).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    want, got = plain(x), layer(x)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(want)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, *m.parameters()]) for y, m in ((want, plain), (got, layer))
    ]
    torch.testing.assert_close(gradients[1], gradients[0])
