"""Half precision on a CPU without instructions for it: more exact numbers of the same types, and when they are used."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from piip.layers import WinogradConv2d
from piip.layers.cpu_half import Float32Conv2d, Float32Linear, lacks_instructions
from piip.modeling.fuse import fuse

PLAIN = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What torch tells of the processor, for a test to change."""
    told = dict(PLAIN)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    return told


@pytest.mark.parametrize(
    ("found", "dtype", "lacks"),
    [
        ({}, torch.bfloat16, True),
        ({}, torch.float16, True),
        ({}, torch.float32, False),
        ({"amx_bf16": True}, torch.bfloat16, False),
        ({"amx_bf16": True}, torch.float16, True),
        ({"avx512_fp16": True}, torch.float16, False),
        ({"architecture": "aarch64"}, torch.bfloat16, False),
    ],
)
def test_the_processor_says_what_it_has(processor, found, dtype, lacks) -> None:
    processor.update(found)
    assert lacks_instructions(dtype) is lacks


def test_without_word_of_the_processor_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not lacks_instructions(torch.bfloat16)
    assert not Float32Linear.suits(nn.Linear(4, 4).bfloat16())


LAYERS = {
    "linear": (nn.Linear(48, 32), (2, 5, 48)),
    "linear without bias": (nn.Linear(48, 32, bias=False), (7, 48)),
    "strided convolution": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 11)),
    "depthwise convolution": (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False), (2, 8, 9, 11)),
    "padded with copies": (nn.Conv2d(8, 12, 3, padding=1, padding_mode="replicate"), (1, 8, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_result_is_rounded(processor, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer = layer.to(dtype)
    kind = Float32Linear if isinstance(layer, nn.Linear) else Float32Conv2d
    assert kind.suits(layer)
    wide = kind(layer)
    assert wide.state_dict().keys() == layer.state_dict().keys()
    assert not kind.suits(wide)
    x = torch.randn(shape).to(dtype)
    exact = layer.double()(x.double())
    layer.to(dtype)
    with torch.no_grad():
        assert (wide(x) - exact).norm() <= 1.01 * (exact.to(dtype) - exact).norm()


def test_what_does_not_suit(processor) -> None:
    assert not Float32Linear.suits(nn.Linear(4, 4))
    assert not Float32Conv2d.suits(nn.Conv2d(4, 4, 1))
    assert not Float32Linear.suits(nn.Linear(4, 4, device="meta", dtype=torch.bfloat16))
    hooked = nn.Linear(4, 4).bfloat16()
    hooked.register_forward_hook(lambda *args: None)
    assert not Float32Linear.suits(hooked)
    processor["avx512_bf16"] = True
    assert not Float32Linear.suits(nn.Linear(4, 4).bfloat16())


def test_fusing_replaces_the_layers_of_a_model_and_keeps_norms_and_activations(processor) -> None:
    torch.manual_seed(0)
    convs = [
        Conv2d(8, 192, 3, padding=1, norm=nn.BatchNorm2d(192), activation=nn.functional.relu),
        nn.Conv2d(192, 192, 3, padding=1),
        nn.Conv2d(192, 4, 1),
    ]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(4 * 576, 3)).eval().bfloat16()
    fused = fuse(model)
    kinds = [type(m) for m in fused.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert kinds == [Float32Conv2d, WinogradConv2d, Float32Conv2d, Float32Linear]
    x = torch.randn(2, 8, 24, 24).bfloat16()
    with torch.no_grad():
        out, expected = fused(x), model.float()(x.float())
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() < 0.01 * expected.norm()
