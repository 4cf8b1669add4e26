"""Multi-scale deformable attention against the single-level module, plain arithmetic and its own promises."""

import pytest
import torch

from piip.errors import ConfigError
from piip.layers import DeformAttn, MSDeformAttn
from piip.layers.deform_attn import reference_points

GRIDS = [(6, 8), (3, 4)]
CELLS = sum(h * w for h, w in GRIDS)


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def ramp(grids):
    """Every cell holds its own x, y, 1 - x and 1 - y, at each level."""
    places = torch.cat([reference_points(grid, torch.device("cpu")) for grid in grids])
    return torch.cat([places, 1 - places], dim=1)[None]


def reading(num_points, offset):
    """A module of one head that returns what it reads at ``offset`` times p + 1 from the reference, on average."""
    module = MSDeformAttn(4, num_heads=1, num_levels=2, num_points=num_points)
    for proj in (module.value_proj, module.output_proj):
        torch.nn.init.eye_(proj.weight)
    steps = torch.arange(1, num_points + 1.0)[:, None] * torch.tensor(offset)
    module.sampling_offsets.bias.data = steps.repeat(2, 1).flatten()
    return module


def test_one_level_is_the_attention_of_the_interactions():
    torch.manual_seed(0)
    single, multi = randomised(DeformAttn(16, 16, 4, 3, value_ratio=1)), MSDeformAttn(16, 4, 1, 3)
    multi.load_state_dict(single.state_dict())
    query, feat = torch.randn(2, 20, 16), torch.randn(2, 63, 16)
    reference = reference_points((4, 5), torch.device("cpu"))[None, :, None].expand(2, -1, -1, -1)
    torch.testing.assert_close(multi(query, reference, feat, [(7, 9)]), single(query, feat, (4, 5), (7, 9)))


def test_offsets_around_points_are_in_cells_of_each_level():
    out = reading(1, (1.0, 0.0))(torch.zeros(1, 1, 4), torch.full((1, 1, 2, 2), 0.5), ramp(GRIDS), GRIDS)
    # One cell to the right: 1/8 of the width in the first level, 1/4 in the second; halves of the attention each.
    x = 0.5 + (1 / 8 + 1 / 4) / 2
    torch.testing.assert_close(out, torch.tensor([[[x, 0.5, 1 - x, 0.5]]]))


def test_offsets_in_boxes_are_parts_of_half_the_box():
    box = torch.tensor([0.5, 0.5, 0.4, 0.3]).expand(1, 1, 2, 4)
    out = reading(2, (0.0, 1.0))(torch.zeros(1, 1, 4), box, ramp(GRIDS), GRIDS)
    # Steps 1 and 2 of two points: half way to the edge, and the edge.
    y = 0.5 + 0.75 * 0.15
    torch.testing.assert_close(out, torch.tensor([[[0.5, y, 0.5, 1 - y]]]))


@pytest.mark.parametrize("size", [2, 4])
def test_levels_add_up(size):
    """Each level contributes on its own: zeroing the others' values leaves its share."""
    torch.manual_seed(0)
    module = randomised(MSDeformAttn(16, 4, 2, 3))
    module.output_proj.bias.data.zero_()
    query, reference, feat = torch.randn(1, 5, 16), torch.rand(1, 5, 2, size), torch.randn(1, CELLS, 16)
    first = (torch.arange(CELLS) < 48)[None]
    parts = [module(query, reference, feat, GRIDS, padding) for padding in (first, ~first)]
    torch.testing.assert_close(parts[0] + parts[1], module(query, reference, feat, GRIDS))
    assert not torch.allclose(parts[0], parts[1])


def test_padding_has_no_influence():
    torch.manual_seed(0)
    module = randomised(MSDeformAttn(16, 4, 2, 3))
    query, reference, feat = torch.randn(1, 5, 16), torch.rand(1, 5, 2, 2), torch.randn(1, CELLS, 16)
    padding = torch.rand(1, CELLS) < 0.3
    other = torch.where(padding[..., None], torch.full_like(feat, 1e6), feat)
    torch.testing.assert_close(*(module(query, reference, x, GRIDS, padding) for x in (feat, other)))


def test_places_stay_in_float32_under_autocast():
    module = MSDeformAttn(32, 1, 1, 1)
    module.sampling_offsets.bias.data.zero_()
    query, feat, grid = torch.zeros(1, 1, 32), torch.zeros(1, 512, 32), [(1, 512)]
    feat[0, 300] = 1
    reference = torch.tensor([300.5 / 512, 0.5]).view(1, 1, 1, 2)
    exact = module(query, reference, feat, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(query, reference, feat, grid)
    assert rounded.dtype == torch.bfloat16
    assert exact.abs().max() > 0.5
    # A bfloat16 place would miss the one cell that holds something.
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.03)


def test_heads_start_by_looking_in_all_directions():
    offsets = MSDeformAttn(32, 8, 2, 4).sampling_offsets.bias.view(8, 2, 4, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets.abs().amax(-1), torch.tensor([1.0, 2, 3, 4]).expand(8, 2, 4))
    torch.testing.assert_close(offsets.sum(0), torch.zeros(2, 4, 2), rtol=0, atol=1e-5)


def test_gradients_reach_everything():
    torch.manual_seed(0)
    module = randomised(MSDeformAttn(16, 4, 2, 3))
    inputs = [torch.randn(1, 5, 16), torch.rand(1, 5, 2, 4), torch.randn(1, CELLS, 16)]
    for x in inputs:
        x.requires_grad_()
    module(*inputs, GRIDS).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (*inputs, *module.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 must divide the width 16"),
        ({"num_levels": 0}, "num_levels=0"),
        ({"num_points": 0}, "num_points=0"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MSDeformAttn(16, **arguments)
