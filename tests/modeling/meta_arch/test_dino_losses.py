"""Matching and losses."""

import itertools
import math

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from piip.modeling.meta_arch import ContrastiveDenoising, DINOCriterion
from piip.modeling.meta_arch.dino_denoising import Target
from piip.modeling.meta_arch.dino_transformer import Predictions

CLASSES = 5


def objects(*boxes, labels=None):
    labels = range(len(boxes)) if labels is None else labels
    return Target(torch.tensor(list(labels), dtype=torch.long), torch.tensor(boxes, dtype=torch.float32).view(-1, 4))


def predictions(logits, boxes, start=0):
    """The same for three decoder layers and the proposals, the latter without the first ``start`` queries."""
    return Predictions(logits.repeat(3, 1, 1, 1), boxes.repeat(3, 1, 1, 1), logits[:, start:], boxes[:, start:])


def perfect(targets, queries, certainty=20.0):
    """Queries that give every object, in reverse order from the end, and sure background before."""
    logits = torch.full((len(targets), queries, CLASSES), -certainty)
    boxes = torch.rand(len(targets), queries, 4)
    for i, target in enumerate(targets):
        for t in range(len(target)):
            logits[i, -1 - t, target.labels[t]] = certainty
            boxes[i, -1 - t] = target.boxes[t]
    return logits, boxes


TARGETS = [
    objects((0.2, 0.2, 0.1, 0.1), (0.7, 0.6, 0.3, 0.2), (0.5, 0.5, 0.9, 0.9)),
    objects(),
    objects((0.4, 0.8, 0.2, 0.3), labels=[4]),
]


def test_matching_finds_the_right_pairs():
    torch.manual_seed(0)
    logits, boxes = perfect(TARGETS, 8)
    layer, image, query, index = DINOCriterion().match(logits[None], boxes[None], TARGETS)
    assert layer.tolist() == [0] * 4
    found = set(zip(image.tolist(), query.tolist(), index.tolist(), strict=True))
    assert found == {(0, 7, 0), (0, 6, 1), (0, 5, 2), (2, 7, 3)}


def test_matching_has_the_lowest_total_cost_in_every_layer():
    torch.manual_seed(0)
    target = objects((0.2, 0.2, 0.1, 0.1), (0.7, 0.6, 0.3, 0.2), (0.5, 0.5, 0.9, 0.9))
    logits, boxes = torch.randn(2, 1, 5, CLASSES), torch.rand(2, 1, 5, 4)
    matches = DINOCriterion().match(logits, boxes, [target])
    for layer in range(2):
        p = logits[layer, 0].sigmoid()[:, target.labels]
        focal = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes[layer, 0], target.boxes)]
        places = (boxes[layer, 0][:, None] - target.boxes).abs().sum(-1)
        cost = 2 * focal + 5 * places - 2 * generalized_box_iou(*corners)
        best = min(itertools.permutations(range(5), 3), key=lambda rows: sum(cost[q, t] for t, q in enumerate(rows)))
        chosen = matches[0] == layer
        got = dict(zip(matches[3][chosen].tolist(), matches[2][chosen].tolist(), strict=True))
        assert [got[t] for t in range(3)] == list(best)


def test_more_objects_than_queries_are_matched_as_far_as_they_go():
    target = objects(*torch.rand(6, 4).tolist(), labels=[0] * 6)
    matches = DINOCriterion().match(torch.randn(1, 1, 4, CLASSES), torch.rand(1, 1, 4, 4), [target])
    assert sorted(matches[2].tolist()) == [0, 1, 2, 3]
    assert len(set(matches[3].tolist())) == 4


def test_perfect_predictions_cost_nothing():
    torch.manual_seed(0)
    denoising = ContrastiveDenoising(CLASSES, 8, num_queries=6, label_noise=0, box_noise=0)
    queries = denoising(TARGETS)
    logits, boxes = perfect(TARGETS, len(queries) + 8)
    logits[:, : len(queries)] = -20
    for i, target in enumerate(TARGETS):
        index, which = queries.positives(len(target))
        logits[i, index, target.labels[which]] = 20
        boxes[i, index] = target.boxes[which]
    losses = DINOCriterion()(predictions(logits, boxes, len(queries)), TARGETS, queries)
    assert len(losses) == 12
    assert all(loss < 1e-3 for loss in losses.values())


def test_losses_by_hand():
    target = [objects((0.5, 0.5, 0.4, 0.4), labels=[1])]
    logits = torch.zeros(1, 2, CLASSES)
    logits[0, 0] = -20.0
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.4]]])
    losses = DINOCriterion()(predictions(logits, boxes), target)
    # The second query has the object: one right class at 1/2, four wrong ones at 1/2.
    one = math.log(2) * 0.5**2
    assert losses["loss_cls"].item() == pytest.approx(0.25 * one + 4 * 0.75 * one, rel=1e-5)
    assert losses["loss_box"].item() == pytest.approx(5 * 0.2, rel=1e-5)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - 0.5), rel=1e-5)
    for name in ("loss_cls", "loss_box", "loss_giou"):
        assert losses[f"{name}_aux"].item() == pytest.approx(2 * losses[name].item())
        assert losses[f"{name}_enc"].item() == pytest.approx(losses[name].item())
        assert losses[f"{name}_dn"] == 0


def test_losses_are_per_object():
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 6, CLASSES), torch.rand(1, 6, 4)
    target = objects((0.2, 0.2, 0.1, 0.1), (0.7, 0.6, 0.3, 0.2))
    once = DINOCriterion()(predictions(logits, boxes), [target])
    twice = DINOCriterion()(predictions(logits.repeat(2, 1, 1), boxes.repeat(2, 1, 1)), [target, target])
    for name, loss in once.items():
        torch.testing.assert_close(twice[name], loss)


def test_denoising_negatives_are_background():
    torch.manual_seed(0)
    target = [objects((0.5, 0.5, 0.4, 0.4), labels=[1])]
    queries = ContrastiveDenoising(CLASSES, 8, num_queries=2)(target)
    assert len(queries) == 4  # two groups of a positive and a negative one
    logits, boxes = torch.full((1, 4 + 3, CLASSES), -20.0), torch.rand(1, 7, 4)
    base = DINOCriterion()(predictions(logits, boxes, 4), target, queries)
    for negative in (1, 3):
        raised = logits.clone()
        raised[0, negative, 1] = 3.0
        losses = DINOCriterion()(predictions(raised, boxes, 4), target, queries)
        assert losses["loss_cls_dn"] > base["loss_cls_dn"] + 0.1
        assert losses["loss_cls"] == base["loss_cls"]
    moved = boxes.clone()
    moved[0, [1, 3]] = torch.rand(2, 4)
    assert DINOCriterion()(predictions(logits, moved, 4), target, queries)["loss_box_dn"] == base["loss_box_dn"]


def test_images_without_objects():
    logits = torch.randn(2, 6, CLASSES, requires_grad=True)
    boxes = torch.rand(2, 6, 4, requires_grad=True)
    losses = DINOCriterion()(predictions(logits, boxes), [objects(), objects()])
    sum(losses.values()).backward()
    assert losses["loss_cls"] > 0
    assert losses["loss_box"] == losses["loss_giou"] == 0
    assert boxes.grad is not None


def test_predictions_that_are_not_numbers_are_told():
    logits = torch.full((1, 4, CLASSES), float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        DINOCriterion()(predictions(logits, torch.rand(1, 4, 4)), [objects((0.5, 0.5, 0.4, 0.4))])
