"""Denoising queries: what they hold, and what they must not give away."""

import pytest
import torch
from torchvision.ops import box_convert

from piip.errors import ConfigError
from piip.modeling.meta_arch import ContrastiveDenoising
from piip.modeling.meta_arch.dino_denoising import Target, inverse_sigmoid


def target(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = 0.05 + 0.1 * torch.rand(count, 2, generator=generator)
    centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
    return Target(torch.randint(5, (count,), generator=generator), torch.cat([centre, size], 1))


def test_as_many_groups_as_the_image_with_the_most_objects_allows():
    denoising = ContrastiveDenoising(5, 32, num_queries=100)
    queries = denoising([target(3), target(7), target(0)])
    assert queries.groups == 14
    assert len(queries) == 14 * 2 * 7
    assert queries.content.shape == (3, 196, 32)
    assert queries.boxes.shape == (3, 196, 4)
    assert ContrastiveDenoising(5, 32, num_queries=4)([target(9)]).groups == 1


def test_without_objects_there_are_no_queries():
    assert ContrastiveDenoising(5, 32)([target(0), target(0)]) is None


def test_positive_queries_stay_near_and_negative_ones_do_not():
    torch.manual_seed(0)
    objects = target(4)
    queries = ContrastiveDenoising(5, 32, num_queries=400, label_noise=0)([objects])
    boxes = queries.boxes.sigmoid().view(queries.groups, 2, 4, 4)
    true = box_convert(objects.boxes, "cxcywh", "xyxy")
    moved = (box_convert(boxes, "cxcywh", "xyxy") - true).abs() / objects.boxes[:, 2:].repeat(1, 2) * 2
    assert moved[:, 0].max() < 1.01
    assert moved[:, 0].min() < 0.02
    # Where both corners go inwards they pass each other: such a box has no size left.
    moved = moved[:, 1][(boxes[:, 1, :, 2:] > 0.002).all(-1)]
    assert 0.99 < moved.min() < 1.02
    assert 1.9 < moved.max() < 2.01


def test_label_noise_changes_its_share_of_the_classes():
    torch.manual_seed(0)
    objects = Target(torch.full((10,), 3), target(10).boxes)
    denoising = ContrastiveDenoising(5, 32, num_queries=2000, label_noise=0.5)
    content = denoising([objects]).content[0]
    right = (content == denoising.class_embed.weight[3]).all(-1).float().mean()
    # A quarter is drawn anew, of which a fifth is right again.
    assert abs(right - (0.75 + 0.25 / 5)) < 0.02


def test_without_noise_positives_are_the_objects():
    denoising = ContrastiveDenoising(5, 32, num_queries=9, label_noise=0, box_noise=0)
    objects = [target(3), target(2, seed=1)]
    queries = denoising(objects)
    for image, wanted in enumerate(objects):
        index, which = queries.positives(len(wanted))
        assert len(index) == 3 * len(wanted)
        torch.testing.assert_close(queries.boxes[image, index].sigmoid(), wanted.boxes[which])
        assert torch.equal(queries.content[image, index], denoising.class_embed(wanted.labels[which]))


def test_ground_truth_is_hidden_from_matching_queries_and_other_groups():
    queries = ContrastiveDenoising(5, 32, num_queries=6)([target(2)])
    blocked = queries.blocked(num_matching=5)
    slots = len(queries) // queries.groups
    assert queries.groups == 3
    assert blocked.shape == (len(queries) + 5,) * 2
    assert blocked[len(queries) :, : len(queries)].all()
    assert not blocked[len(queries) :, len(queries) :].any()
    group = torch.arange(len(queries)) // slots
    assert torch.equal(blocked[: len(queries), : len(queries)], group[:, None] != group)
    # Nobody is left without anything to attend to.
    assert not blocked.all(dim=1).any()


def test_inverse_sigmoid_is_bounded():
    x = torch.tensor([0.0, 0.01, 0.5, 0.9, 1.0])
    torch.testing.assert_close(inverse_sigmoid(x)[1:4], torch.logit(x[1:4]))
    torch.testing.assert_close(inverse_sigmoid(x)[[0, 4]].abs(), torch.tensor([1e-3, 1e-3]).log().abs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_queries": 0}, "num_queries=0"),
        ({"label_noise": 2.5}, "label_noise=2.5"),
        ({"box_noise": -1}, "box_noise=-1"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ContrastiveDenoising(5, 32, **arguments)
