"""Window partition: order, padding, inverse."""

import pytest
import torch

from piip.layers import window_partition, window_unpartition
from piip.layers.windows import windows_in_grid


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1), (9, 2)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_round_trip(grid, size):
    x = torch.randn(2, *grid, 3)
    windows = window_partition(x, size)
    assert windows.shape[1:] == (size, size, 3)
    assert torch.equal(window_unpartition(windows, grid), x)


def test_windows_are_row_major_and_padded_with_zeros():
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    windows = window_partition(x, 2)[..., 0]
    assert windows.tolist() == [[[1, 2], [4, 5]], [[3, 0], [6, 0]]]


def test_windows_without_padding_are_seen_in_the_order_of_the_grid():
    x = torch.randn(2, 4, 6, 3)
    windows = window_partition(x, 2)
    view = windows_in_grid(windows, (4, 6))
    assert view.data_ptr() == windows.data_ptr()
    assert torch.equal(view.flatten(3, 4).flatten(1, 2), x)
