"""The finest branch, in which released checkpoints differ from their configs, is told by its tensors."""

from __future__ import annotations

import logging

import pytest
import torch

from piip.checkpoint import build_from_official, load_official, load_weights, to_official
from piip.checkpoint.adapt import adapt_to_checkpoint
from piip.modeling import PIIP, InternViTBranch, ViTBranch
from piip.modeling.without_weights import on_meta
from tests import reference


def pyramid(kind, rows=518, **kwargs):
    """As the released model with DINOv2's larger branches, whose small branch may be of either kind."""
    small = {"window_size": 4, "drop_path_rate": 0.1, "pretrain_img_size": rows, **kwargs}
    branches = [kind(32, 4, 2, **small), InternViTBranch(64, 4, 4, pretrain_img_size=518)]
    return PIIP(branches, [224, 160], 2, {"num_heads": 4})


def forms(model, tmp_path):
    """The same weights by both names and as files."""
    torch.save(to_official(model), tmp_path / "released.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "ours.pth")
    return [str(tmp_path / "released.pth"), str(tmp_path / "ours.pth")]


KINDS = [(ViTBranch, 224, 196), (InternViTBranch, 518, 1025)]


@pytest.mark.parametrize(("configured", "size", "_"), KINDS)
@pytest.mark.parametrize(("held", "held_size", "rows"), KINDS)
def test_the_small_branch_is_of_the_kind_of_the_checkpoint(
    tmp_path, caplog, configured, size, _, held, held_size, rows
):
    source = pyramid(held, held_size).eval()
    image = torch.randn(1, 3, 96, 96)
    for path in forms(source, tmp_path):
        caplog.clear()
        target = pyramid(configured, size).eval()
        with caplog.at_level(logging.WARNING):
            report = load_weights(target, path)
        assert report.complete
        assert not report.resized
        finest = target.branches[0]
        assert type(finest) is held
        assert finest.pos_embed.shape == (1, rows, 32)
        assert finest.window_sizes == [4] * 4
        said = f"of the kind {held.__name__} (its position embedding has {rows} rows)" in caplog.text
        assert said == (held is not configured)
        with torch.no_grad():
            assert torch.equal(target(image)["c4"], source(image)["c4"])


def test_the_exchanged_branch_keeps_the_settings_of_the_model():
    source = pyramid(ViTBranch, 224)
    target = pyramid(InternViTBranch, 518, activation="gelu_tanh", use_act_checkpoint=True).bfloat16()
    load_official(target, to_official(source))
    finest = target.branches[0]
    assert finest.blocks[3].drop_path1.drop_prob == pytest.approx(0.1)
    assert finest.blocks[0].mlp.act.approximate == "tanh"
    assert finest.use_act_checkpoint
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}


def test_models_that_differ_otherwise_are_left_as_they_are():
    model = pyramid(ViTBranch, 224)
    before = list(model.branches)
    others = [
        pyramid(ViTBranch, 384),  # another size of the same kind: resized
        PIIP([InternViTBranch(64, 4, 4), InternViTBranch(64, 4, 4)], [224, 160], 2),  # another width
        PIIP([InternViTBranch(32, 2, 2), InternViTBranch(64, 4, 4)], [224, 160], 2, {"num_heads": 4}),  # another depth
        PIIP([InternViTBranch(32, 4, 2)], [224], 2),  # another number of branches
    ]
    for other in others:
        adapt_to_checkpoint(model, to_official(other))
        assert list(model.branches) == before


def test_four_branches_without_weights_take_either_width(tmp_path):
    args = reference.case("piip/tiny_3branch")["args"]
    args["branch4"] = {**args["branch3"], "real_size": 256, "embed_dim": 16, "num_heads": 1}
    released = build_from_official("PIIPFourBranch", {**args, "branch4": {**args["branch3"], "real_size": 256}})
    torch.save(to_official(released), tmp_path / "released.pth")
    with on_meta():
        empty = build_from_official("PIIPFourBranch", args)
    assert load_weights(empty, str(tmp_path / "released.pth")).complete
    assert empty.branches[0].out_channels[0] == released.branches[0].out_channels[0]
    assert not any(p.is_meta for p in empty.parameters())
