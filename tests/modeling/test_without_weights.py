"""Models without weights are the same models."""

from __future__ import annotations

import pytest
import timm
import torch

from piip.modeling import PIIP, ViTBranch
from piip.modeling.without_weights import on_meta, without_weights

BUILDS = {
    "piip": lambda: PIIP([ViTBranch(32, 2, 2), ViTBranch(64, 2, 2)], [224, 160], 2, {"num_heads": 4}),
    "timm": lambda: timm.create_model("test_vit"),
}


def described(model: torch.nn.Module) -> dict[str, tuple]:
    parameters = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    return parameters | {name: (b.shape, b.dtype) for name, b in model.named_buffers()}


@pytest.mark.parametrize("context", [on_meta, without_weights])
@pytest.mark.parametrize("name", BUILDS)
def test_models_are_alike_and_nothing_is_drawn_for_them(name, context) -> None:
    whole = BUILDS[name]()
    state = torch.random.get_rng_state()
    with context():
        empty = BUILDS[name]()
    assert described(empty) == described(whole)
    assert all(p.is_meta for p in empty.parameters())
    assert torch.random.get_rng_state().equal(state)
    assert not any(p.is_meta for p in BUILDS[name]().parameters())


def test_buffers_keep_their_values() -> None:
    def batch_norm() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))

    with without_weights():
        empty = batch_norm()
    for name, buffer in batch_norm().named_buffers():
        assert empty.get_buffer(name).equal(buffer), name
    with on_meta():
        assert all(t.is_meta for t in batch_norm().state_dict().values())
