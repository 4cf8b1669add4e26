"""Sine embeddings of places."""

import math

import torch

from piip.modeling.meta_arch.position import box_position, map_position


def test_cells_by_hand():
    padding = torch.zeros(1, 2, 5, dtype=torch.bool)
    padding[:, :, 4:] = True
    out = map_position(padding, num_feats=4, temperature=20.0)
    assert out.shape == (1, 2, 5, 8)
    y, x = 2 * math.pi * 2 / 2, 2 * math.pi * 3 / 4  # second of two rows, third of four columns
    waves = [f(angle) for a in (y, x) for angle in (a, a / math.sqrt(20)) for f in (math.sin, math.cos)]
    torch.testing.assert_close(out[0, 1, 2], torch.tensor(waves), rtol=0, atol=1e-4)


def test_cells_do_not_see_padding_beside_them():
    inside = map_position(torch.zeros(1, 3, 4, dtype=torch.bool), 8)
    padding = torch.ones(1, 6, 9, dtype=torch.bool)
    padding[:, :3, :4] = False
    torch.testing.assert_close(map_position(padding, 8)[:, :3, :4], inside)


def test_boxes_are_embedded_in_the_order_y_x_w_h():
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    out = box_position(box, num_feats=2)
    angles = [2 * math.pi * a for a in (0.2, 0.1, 0.3, 0.4)]
    torch.testing.assert_close(out, torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)]))
    assert box_position(torch.rand(2, 3, 4), 64).shape == (2, 3, 256)
