"""Quick shapes are those of torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piip.analysis.shapes import PRODUCTS, UNCOUNTED, QuickShapes

X = torch.empty(2, 32, 6, 8, device="meta")
TOKENS = torch.empty(2, 48, 32, device="meta")
IMAGES = X.to(memory_format=torch.channels_last)
RUNS = {
    "add": lambda: TOKENS + TOKENS,
    "add a row": lambda: TOKENS + TOKENS.new_empty(32),
    "add to a row": lambda: TOKENS.new_empty(32) + TOKENS,
    "add to a column": lambda: TOKENS[..., :1] + TOKENS,
    "add with channels last": lambda: IMAGES + X,
    "add doubles": lambda: TOKENS + TOKENS.double(),
    "add a bias of channels": lambda: X + X.new_empty(32, 1, 1),
    "addcmul": lambda: torch.addcmul(TOKENS, TOKENS.new_empty(32), TOKENS),
    "expand": lambda: TOKENS[:1].expand(3, -1, -1),
    "multiply": lambda: TOKENS * TOKENS,
    "multiply by a number": lambda: torch.ops.aten.mul.Scalar(TOKENS, 0.5),
    "multiply integers by a fraction": lambda: torch.ops.aten.mul.Scalar(TOKENS.long(), 0.5),
    "permute": lambda: X.permute(0, 2, 3, 1),
    "promote": lambda: TOKENS.to(torch.promote_types(TOKENS.dtype, torch.float64)),
    "softmax": lambda: TOKENS.softmax(-1),
    "transpose": lambda: TOKENS.transpose(1, 2),
    "view": lambda: TOKENS.view(2, -1),
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
    assert quick.stride() == expected.stride()


def test_every_answer_is_asked():
    asked = set()

    def noting(name, answer):
        return lambda *args, **kwargs: asked.add(name) or answer(*args, **kwargs)

    answers = {name: noting(name, answer) for name, answer in {**PRODUCTS, **UNCOUNTED}.items()}
    with torch.no_grad(), QuickShapes(answers):
        for run in RUNS.values():
            run()
    assert asked == set(answers)
