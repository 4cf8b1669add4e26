"""Quick shapes are those of torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piip.analysis.shapes import PRODUCTS, UNCOUNTED, QuickShapes

X = torch.empty(2, 32, 6, 8, device="meta")
TOKENS = torch.empty(2, 48, 32, device="meta")
RUNS = {
    "gelu": lambda: F.gelu(X, approximate="tanh"),
    "relu": lambda: F.relu(X),
    "attention": lambda: F.scaled_dot_product_attention(*[TOKENS] * 3, attn_mask=TOKENS.new_empty(48, 48)),
    "batch norm": lambda: nn.BatchNorm2d(32, device="meta").eval()(X),
    "group norm": lambda: nn.GroupNorm(4, 32, device="meta")(X),
    "layer norm": lambda: nn.LayerNorm(32, device="meta")(TOKENS),
    "bicubic": lambda: F.interpolate(X, (3, 9), mode="bicubic"),
    "bilinear": lambda: F.interpolate(X, scale_factor=2, mode="bilinear"),
    "linear": lambda: nn.Linear(32, 5, device="meta")(TOKENS),
    "addmm": lambda: torch.addmm(TOKENS.new_empty(7), TOKENS[0], TOKENS.new_empty(32, 7), beta=0.5, alpha=2.0),
}


@pytest.mark.parametrize("name", RUNS)
def test_shapes_and_dtypes_are_those_of_torch(name):
    with torch.no_grad():
        expected = RUNS[name]()
        with QuickShapes({**PRODUCTS, **UNCOUNTED}):
            quick = RUNS[name]()
    assert (quick.shape, quick.dtype, quick.device) == (expected.shape, expected.dtype, expected.device)


def test_every_answer_is_asked():
    asked = set()

    def noting(name, answer):
        return lambda *args, **kwargs: asked.add(name) or answer(*args, **kwargs)

    answers = {name: noting(name, answer) for name, answer in {**PRODUCTS, **UNCOUNTED}.items()}
    with torch.no_grad(), QuickShapes(answers):
        for run in RUNS.values():
            run()
    assert asked == set(answers)
