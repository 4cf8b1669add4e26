"""The transformer: shapes, choice of queries, refinement, padding."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from piip.errors import ConfigError
from piip.modeling.meta_arch import ContrastiveDenoising, DINOCriterion
from piip.modeling.meta_arch.dino_denoising import Target, inverse_sigmoid
from tests import reference
from tests.modeling.meta_arch.tiny_dino import filled, tiny_transformer, trained_like

SIZE = (64, 96)
GRIDS = [(16, 24), (8, 12), (4, 6), (2, 3)]


def maps(batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 32, h, w, generator=generator) for h, w in GRIDS]


def no_padding(batch=1):
    return torch.zeros(batch, *SIZE, dtype=torch.bool)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return trained_like(tiny_transformer()).eval()


def test_predictions_and_losses_match_an_independent_implementation():
    """Two images, one of them padded; weights and maps by the rules of the reference numbers."""
    case = json.loads((Path(__file__).parent / "dino_transformer.json").read_text())
    padding = torch.ones(2, *case["sizes"][1], dtype=torch.bool)
    for mask, (height, width) in zip(padding, case["sizes"], strict=True):
        mask[:height, :width] = False
    features = [reference.normal(k, [2, 32, *grid]) for k, grid in enumerate(case["grids"])]
    out = filled(tiny_transformer()).eval()(features, padding)
    for record in case["outputs"]:
        reference.assert_matches(getattr(out, record["name"]), record, rtol=1e-4)
    targets = [Target(torch.tensor(t["labels"]), torch.tensor(t["boxes"])) for t in case["targets"]]
    losses = DINOCriterion()(out, targets)
    assert {name: losses[name].item() for name in case["losses"]} == pytest.approx(case["losses"], rel=1e-4)


def test_predictions_of_every_layer(transformer):
    out = transformer(maps(2), no_padding(2))
    assert out.logits.shape == (3, 2, 20, 5)
    assert out.boxes.shape == (3, 2, 20, 4)
    assert out.proposal_logits.shape == (2, 20, 5)
    assert out.proposal_boxes.shape == (2, 20, 4)
    assert ((out.boxes > 0) & (out.boxes < 1)).all()


def test_before_training_boxes_stay_where_the_proposals_are_and_nothing_is_likely():
    torch.manual_seed(0)
    out = tiny_transformer()(maps(), no_padding())
    bounded = inverse_sigmoid(out.proposal_boxes).sigmoid()
    for boxes in out.boxes:
        torch.testing.assert_close(boxes, bounded, rtol=0, atol=1e-5)
    assert out.logits.sigmoid().mean() < 0.03
    # Proposals lie on the cells, with the size of their level.
    sizes = out.proposal_boxes[0, :, 2:]
    assert torch.allclose(sizes[:, 0], sizes[:, 1])
    assert {round(size, 3) for size in sizes[:, 0].tolist()} <= {0.05, 0.1, 0.2, 0.4}


def test_the_tokens_with_the_best_scores_become_queries(transformer):
    out = transformer(maps(), no_padding())
    best = out.proposal_logits[0].amax(-1)
    assert torch.equal(best, best.sort(descending=True).values)
    everything = tiny_transformer(num_queries=2000).eval()
    everything.load_state_dict({**transformer.state_dict(), "query_embed.weight": torch.randn(2000, 32)})
    # As many as there are cells, where these are fewer than the queries.
    all_of_them = everything(maps(), no_padding()).proposal_logits
    assert all_of_them.shape[1] == sum(h * w for h, w in GRIDS)
    torch.testing.assert_close(all_of_them[0, :20], out.proposal_logits[0])


def test_each_layer_corrects_the_boxes_of_the_one_before(transformer):
    out = transformer(maps(), no_padding())
    steps = [out.proposal_boxes, *out.boxes]
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.pairwise(steps))
    with torch.no_grad():  # without corrections in the first layer, the others start from the proposals
        torch.nn.init.zeros_(transformer.box_heads[0][-1].weight)
        torch.nn.init.zeros_(transformer.box_heads[0][-1].bias)
    other = transformer(maps(), no_padding())
    torch.testing.assert_close(other.boxes[0], inverse_sigmoid(out.proposal_boxes).sigmoid())
    assert not torch.allclose(other.boxes[1], out.boxes[1])


def test_boxes_look_two_layers_back_and_no_further(transformer):
    boxes = transformer(maps(), no_padding()).boxes
    heads = [head[-1].bias for head in transformer.box_heads]
    for layer in range(3):
        gradients = torch.autograd.grad(boxes[layer].sum(), heads, retain_graph=True, allow_unused=True)
        reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
        assert reached == [layer - 1 <= k <= layer for k in range(3)] + [False]


def padded(seed):
    """The maps of an image in a batch with a larger one: anything may stand in the padding."""
    generator = torch.Generator().manual_seed(seed)
    padding = torch.ones(2, 128, 160, dtype=torch.bool)
    padding[0, : SIZE[0], : SIZE[1]] = False
    padding[1] = False
    larger = []
    for feature, scale in zip(maps(), (4, 8, 16, 32), strict=True):
        x = 50 * torch.randn(2, 32, 128 // scale, 160 // scale, generator=generator)
        x[0, :, : feature.shape[2], : feature.shape[3]] = feature[0]
        larger.append(x)
    return larger, padding


def assert_same_first_image(one, other):
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        images = a.dim() - 3
        torch.testing.assert_close(a.select(images, 0), b.select(images, 0), rtol=1e-3, atol=1e-4)


def test_what_stands_in_the_padding_has_no_effect(transformer):
    assert_same_first_image(transformer(*padded(1)), transformer(*padded(2)))


def test_an_image_gives_the_same_in_a_larger_batch(transformer):
    # Only the embedded places of queries are in units of the padded map, as in the released models.
    torch.nn.init.zeros_(transformer.box_position_proj[-1].weight)
    assert_same_first_image(transformer(maps(), no_padding()), transformer(*padded(1)))


def test_matching_queries_do_not_see_denoising_ones(transformer):
    torch.manual_seed(0)
    target = Target(torch.tensor([1, 2]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]]))
    queries = ContrastiveDenoising(5, 32, num_queries=6)([target])
    plain, denoised = transformer(maps(), no_padding()), transformer(maps(), no_padding(), queries)
    assert denoised.boxes.shape[2] == len(queries) + 20
    torch.testing.assert_close(denoised.boxes[:, :, len(queries) :], plain.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoised.logits[:, :, len(queries) :], plain.logits, rtol=1e-4, atol=1e-5)
    # Neither does a group of denoising queries see another.
    changed = queries.boxes.clone()
    changed[:, :4] += 1
    other = transformer(maps(), no_padding(), type(queries)(queries.content, changed, queries.groups))
    torch.testing.assert_close(other.logits[:, :, 4:], denoised.logits[:, :, 4:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other.logits[:, :, :4], denoised.logits[:, :, :4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 must divide the width 32"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"decoder_layers": 0}, "decoder_layers=0"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny_transformer(**arguments)
