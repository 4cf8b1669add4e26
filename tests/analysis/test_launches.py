"""Counted launches: what writes memory on a GPU, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.analysis.launches import launches
from piip.layers import DeformAttn
from piip.layers.ska import ska
from piip.layers.winograd import WinogradConv2d
from piip.modeling import SingleBranch, ViTBranch, fuse

IMAGE = torch.randn(1, 3, 64, 64)


class Doing(nn.Module):
    """What a function does with the image; modules of its own are told."""

    def __init__(self, function, *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> object:
        return self.function(x, *self.parts)


def attention(x: Tensor) -> Tensor:
    q = x.flatten(2)[:, None]
    return F.scaled_dot_product_attention(q, q, q)


def shaped(x: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    x = x.permute(0, 2, 3, 1).flatten(1, 2).detach().chunk(2, dim=1)[0][:, :, None].expand(-1, -1, 4, -1)
    return x.new_empty(x.shape), torch.empty_like(x), x.size()


CASES = {
    "shapes and views": (Doing(shaped), {}),
    "a copy": (Doing(lambda x: x.transpose(2, 3).contiguous()), {"aten::clone": 1}),
    "no copy": (Doing(lambda x: x.contiguous().to(x.dtype).reshape(3, -1)), {}),
    "in place": (Doing(lambda x: x.zero_().add_(1)), {"aten::zero_": 1, "aten::add_": 1}),
    "another type": (Doing(lambda x: x.double()), {"aten::_to_copy": 1}),
    "a linear layer": (Doing(lambda x, linear: linear(x), nn.Linear(8, 4)), {"aten::addmm": 1}),
    "attention": (Doing(attention), {"aten::_scaled_dot_product_flash_attention": 1}),
    "small-kernel aggregation": (Doing(lambda x: ska(x, x.new_empty(2, 3, 9, 8, 8))), {"piip::ska": 1}),
    "not the way of a CPU": (
        Doing(lambda x, conv: conv(x), WinogradConv2d(nn.Conv2d(3, 4, 3, padding=1))),
        {"aten::convolution": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_writes_memory_is_counted(name: str) -> None:
    model, expected = CASES[name]
    assert launches(model, torch.empty(2, 3, 8, 8)) == Counter(expected)
    with torch.inference_mode():
        assert launches(model, torch.empty(2, 3, 8, 8)) == Counter(expected)


def test_deformable_attention_is_one_and_what_is_kept_of_a_size_is_free() -> None:
    def attend(x: Tensor, attn: nn.Module) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[..., :1].expand(-1, -1, 16)
        return attn(tokens, tokens, (8, 8), (8, 8))

    calls = launches(Doing(attend, DeformAttn(16, 16, 2)), torch.empty(1, 3, 8, 8))
    assert calls["piip::deform_attn"] == 1
    assert not {"aten::arange", "aten::stack", "aten::div"} & set(calls)


def test_fused_interactions_launch_less_and_as_much_in_half_precision_but_for_a_cast() -> None:
    attn = DeformAttn(16, 16, 2)

    def attend(x: Tensor, attn: nn.Module) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[..., :1].expand(-1, -1, 16).contiguous()
        return attn(tokens, tokens, (8, 8), (8, 8))

    totals = {}
    for dtype in (torch.float32, torch.bfloat16):
        image = torch.empty(1, 3, 8, 8, dtype=dtype)
        model = Doing(attend, attn).eval().to(dtype)
        totals[dtype] = [launches(m, image) for m in (model, fuse(model))]
    plain, fused = totals[torch.float32]
    assert fused == Counter({"aten::addmm": 3, "aten::clone": 1, "piip::deform_attn_joined": 1})
    assert plain.total() == fused.total() + 3  # a product, the places and the softmax
    assert totals[torch.bfloat16][1] == fused + Counter({"aten::_to_copy": 1})


def test_positions_of_a_frozen_network_are_made_once_and_those_of_a_run_are_not_taken() -> None:
    torch.manual_seed(0)
    model = SingleBranch(ViTBranch(32, 2, 2, pretrain_img_size=32)).eval()
    assert launches(model, IMAGE)["aten::upsample_bicubic2d"] == 1
    model.requires_grad_(False)
    before = launches(model, IMAGE)
    assert before["aten::upsample_bicubic2d"] == 0
    with torch.no_grad():
        out = model(IMAGE)
    assert launches(model, IMAGE) == before
    assert not any(p.is_meta for p in model.parameters())
    assert all(torch.isfinite(x).all() for x in out.values())


def test_windows_that_cover_a_grid_take_one_copy() -> None:
    copies = []
    for window in (0, 2):
        branch = ViTBranch(32, 1, 2, window_size=window, pretrain_img_size=32)
        copies.append(launches(SingleBranch(branch).eval(), IMAGE)["aten::clone"])
    assert copies[1] == copies[0] + 1


def test_a_branch_of_more_blocks_launches_as_much_more() -> None:
    totals = [launches(SingleBranch(ViTBranch(32, depth, 2)).eval(), IMAGE).total() for depth in (1, 2, 4)]
    assert totals[2] - totals[1] == 2 * (totals[1] - totals[0]) > 0
