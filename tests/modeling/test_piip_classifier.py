"""PIIP as an image classifier, against the released classifiers and by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip.analysis import published_cost
from piip.analysis.cost import Cost
from piip.checkpoint import build_from_official, load_official
from piip.checkpoint.convert import to_official
from piip.checkpoint.load import load_pretrained
from piip.errors import CheckpointError, ConfigError
from piip.modeling import PIIPClassifier, ViTBranch
from piip.modeling.without_weights import on_meta, without_weights
from tests.reference import assert_matches, case, input_of, weights


def branch(width: int, size: int, **options: object) -> ViTBranch:
    return ViTBranch(width, 2, 2, pretrain_img_size=size, **{"class_token": True, **options})


def classifier(**options: object) -> PIIPClassifier:
    torch.manual_seed(0)
    branches = [branch(width, size) for width, size in ((32, 96), (64, 64))]
    return PIIPClassifier(branches, [96, 64], 5, interaction_indexes=2, interaction={"num_heads": 4}, **options)


@pytest.mark.parametrize("name", ["cls_tsb_368_192_128", "cls_tsb_mergehead_reduced"])
def test_released_classifiers_are_reproduced(name):
    reference = case(f"piip/{name}")
    with without_weights():
        model = build_from_official(reference["class"], reference["args"]).eval()
    released = weights(reference["state_dict"])
    assert load_official(model, {"model": released}).complete
    with torch.no_grad():
        assert_matches(model(input_of(reference)), reference["outputs"][0])
    back = to_official(model)
    assert back.keys() == released.keys()
    assert all(back[k].equal(released[k]) for k in back)
    params = sum(p.numel() for p in model.parameters())
    assert params == reference["param_count"] == Cost.total(published_cost(model).values()).params


def test_published_cost_of_the_smallest_classifier_is_reproduced():
    reference = case("piip/cls_tsb_368_192_128")
    with on_meta():
        model = build_from_official(reference["class"], reference["args"])
    cost = Cost.total(published_cost(model).values())
    assert round(cost.params / 1e6) == 144
    assert round(cost.macs / 1e9, 1) == 17.4


def test_augreg_branches_have_a_position_for_the_class_token_and_no_layer_scale():
    args = case("piip/cls_tsb_mergehead_reduced")["args"]
    args = {**args, "model_type": "augreg", "separate_head": True}
    names = to_official(build_from_official("classification/piip_3branch.py PIIPThreeBranch", args))
    assert names["branch1.pos_embed"].shape == (1, 8 * 8 + 1, 768)
    assert not any("ls1" in name or "gamma_1" in name for name in names)
    assert names["branch3.head.weight"].shape == (100, 192)


def test_classes_of_other_projects_are_refused():
    with pytest.raises(ConfigError, match=r"'llava/x\.py PIIPThreeBranch' is in no known project"):
        build_from_official("llava/x.py PIIPThreeBranch", {})


def test_heads_look_at_the_token_they_are_told_to():
    image = torch.randn(2, 3, 96, 96)
    outputs = []
    for token in ("first_patch", "class", "mean"):
        model = classifier(head_token=token).eval()
        outputs.append(model(image))
        states = list(model.run_steps(image, torch.float32))[-1]
        seen = {
            "first_patch": lambda s: s.tokens[:, :1],
            "class": lambda s: s.prefix,
            "mean": lambda s: s.tokens,
        }[token]
        per_branch = [h.fc(h.norm(seen(s)).mean(1)) for h, s in zip(model.heads, states, strict=True)]
        torch.testing.assert_close(outputs[-1], sum(per_branch) / 2)
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def test_class_token_takes_part_in_attention_and_has_no_position():
    vit = branch(32, 96).eval()
    state = vit.embed(torch.randn(1, 3, 96, 96))
    assert state.prefix.shape == (1, 1, 32)
    assert state.prefix.equal(vit.cls_token)
    after = vit.run(state, 0, 2)
    moved = vit.run(state.replace(prefix=torch.randn(1, 1, 32)), 0, 2)
    assert after.tokens.shape == (1, 36, 32)
    assert after.prefix.shape == (1, 1, 32)
    assert not torch.allclose(after.tokens, moved.tokens)


@pytest.mark.parametrize(
    ("head", "head_token"),
    [("separate", "first_patch"), ("separate", "class"), ("separate", "mean"), ("merged", "first_patch")],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_learns(head, head_token, recompute):
    model = classifier(head=head, head_token=head_token, use_act_checkpoint=recompute)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # much starts with zeros
    nn.functional.cross_entropy(model(torch.randn(2, 3, 96, 96)), torch.tensor([1, 4])).backward()
    # Training on several devices fails if a parameter that may learn never gets a gradient.
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None or not p.grad.abs().any()] == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all(name.startswith("interactions.1.") for name in frozen)
    assert bool(frozen) == (head_token == "class")


def test_half_precision_takes_and_returns_float32():
    out = classifier().to(torch.bfloat16).eval()(torch.randn(1, 3, 96, 96))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_pretrained_networks_bring_their_heads(tmp_path):
    source = classifier()
    for k, vit in enumerate(source.branches):
        state = vit.state_dict() | {
            name.replace("fc.", "head."): tensor for name, tensor in source.heads[k].state_dict().items()
        }
        torch.save({"model": state}, tmp_path / f"{k}.pth")

    def with_weights(num_classes: int) -> PIIPClassifier:
        torch.manual_seed(1)
        sizes = ((32, 96), (64, 64))
        branches = [branch(w, s, weights=str(tmp_path / f"{k}.pth")) for k, (w, s) in enumerate(sizes)]
        return PIIPClassifier(branches, [96, 64], num_classes, interaction_indexes=2, interaction={"num_heads": 4})

    model = with_weights(5)
    report = load_pretrained(model)
    assert report.ignored == []
    assert all(a.equal(b) for a, b in zip(model.heads.parameters(), source.heads.parameters(), strict=True))
    other = with_weights(7)  # of other classes than the pretrained head
    before = other.heads[0].fc.weight.clone()
    assert "head.weight" in " ".join(load_pretrained(other).ignored)
    assert other.heads[0].fc.weight.equal(before)


def test_checkpoint_of_a_detector_is_refused():
    reference = case("piip/cls_tsb_mergehead_reduced")
    model = build_from_official(reference["class"], reference["args"])
    with pytest.raises(CheckpointError, match="the model is"):
        load_official(model, weights(case("piip/twobranch_deit")["state_dict"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mean"}, "head='mean' is unknown"),
        ({"head_token": "cls"}, "head_token='cls' is unknown"),
        ({"head": "merged", "head_token": "mean"}, "is for separate heads"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PIIPClassifier([branch(32, 96)], [96], **{"interaction_indexes": 1, **options})


def test_class_token_needs_branches_with_one_and_global_attention():
    with pytest.raises(ConfigError, match="branch 0, a ViTBranch, has none"):
        PIIPClassifier([branch(32, 96, class_token=False)], [96], head_token="class", interaction_indexes=1)
    with pytest.raises(ConfigError, match="class_token=True needs global attention, and window_size is 7"):
        branch(32, 96, window_size=7)


def test_input_that_patches_do_not_tile_is_refused():
    with pytest.raises(ConfigError, match=r"\(1, 3, 100, 96\)"):
        classifier()(torch.randn(1, 3, 100, 96))
