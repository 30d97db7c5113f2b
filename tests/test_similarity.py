"""Maps at full size: one matrix a side does what bilinear upsampling and scipy's Gaussian filter do."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from AnomalyCLIP_lib.similarity import full_size, upsample


@pytest.mark.parametrize("sigma", [0, 0.7, 4, 30])
@pytest.mark.parametrize(("grid", "size"), [(37, 518), (12, 96), (96, 96), (5, 7), (1, 8)])
def test_upsampled_and_smoothed_as_one_after_the_other(grid, size, sigma):
    maps = torch.from_numpy(np.random.RandomState(0).rand(2, grid, grid)).float()
    expected = upsample(maps.double()[:, None], size)[:, 0].numpy()
    if sigma:
        expected = gaussian_filter(expected, sigma, axes=(1, 2))
    ours = full_size(maps, size, sigma)
    assert ours.dtype == torch.float32 and ours.shape == (2, size, size)
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)


def test_maps_at_full_size_are_left_alone_without_a_filter():
    maps = torch.rand(1, 9, 9)
    assert full_size(maps, 9) is maps
