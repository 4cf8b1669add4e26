"""Window partition: order, padding, inverse."""

import pytest
import torch

from piip.layers import window_partition, window_unpartition


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
