"""The published formulation: the same function of the same weights, of which the goldens know our form."""

from __future__ import annotations

import pytest
import torch

from piip.benchmark.peers import VITS, make_piip, make_vit, of_timm, randomise, with_fpn
from piip.benchmark.released import as_released
from piip.errors import ConfigError
from piip.modeling import LSNet
from piip.modeling.lsnet import VARIANTS


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VITS, "X", (64, 3, 2))


def test_equals_ours_forward_and_backward() -> None:
    torch.manual_seed(0)
    model = randomise(make_piip("XX", (96, 64)))
    released = as_released(model)
    assert [id(p) for p in released.parameters()] == [id(p) for p in model.parameters()]
    image = torch.randn(2, 3, 64, 96)
    results = []
    for form in (model, released):
        maps = form(image)
        sum(x.pow(2).mean() for x in maps.values()).backward()
        results.append({**maps, **{name: p.grad.clone() for name, p in form.named_parameters()}})
        form.zero_grad()
    for name, expected in results[0].items():
        torch.testing.assert_close(
            results[1][name], expected, rtol=1e-3, atol=1e-4 * float(expected.detach().abs().max())
        )


def test_nothing_of_what_makes_ours_fast_is_left() -> None:
    model = with_fpn(make_piip("XX", (96, 64)))
    ours = {type(m) for m in model.modules() if type(m).__module__.startswith("piip.")}
    shared = {type(m) for m in as_released(model).modules() if type(m).__module__.startswith("piip.modeling")}
    # What is left of ours only calls what is in it.
    assert {kind.__name__ for kind in shared & ours} == {"FPN", "PIIP", "SimplePyramidNeck", "_GridBlock"}
    with torch.no_grad():
        tokens = as_released(model).bottom_up.branches[0].embed(torch.randn(1, 3, 64, 96)).tokens
    assert tokens.transpose(1, 2).is_contiguous()


def test_interactions_run_in_float32_in_half_precision_too() -> None:
    torch.manual_seed(0)
    model = randomise(make_piip("XX", (64, 32))).bfloat16().eval()
    released, seen = as_released(model), []
    attn = released.interactions[0][0].to_fine.attn
    attn.register_forward_hook(lambda module, given, out: seen.append((given[0].dtype, out.dtype)))
    image = torch.randn(1, 3, 64, 64).bfloat16()
    with torch.no_grad():
        error = (released(image)["c4"] - model(image)["c4"]).float().norm() / model(image)["c4"].float().norm()
    assert seen == [(torch.float32, torch.float32)]
    assert error < 0.05


def test_timms_vit_equals_ours() -> None:
    torch.manual_seed(0)
    ours = randomise(with_fpn(make_vit("X"))).eval()
    image = torch.randn(1, 3, 256, 256)  # 16 x 16 tokens: windows of 14 reach over the edge
    with torch.no_grad():
        torch.testing.assert_close(of_timm(ours, 256)(image), ours(image), rtol=1e-3, atol=1e-4)


def test_networks_without_a_published_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="the LSNet has no published form to compare with"):
        as_released(LSNet(**VARIANTS["t"]))
