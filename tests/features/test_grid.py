"""Pooling as a matrix equals torch's adaptive average pooling."""

import numpy as np
import pytest
import torch

from pipeline.errors import CacheError
from pipeline.features.grid import decoder_grid, pooling


@pytest.mark.parametrize(
    ("native", "wanted"), [((8, 8), (14, 14)), ((7, 5), (3, 4)), ((4, 9), (5, 2)), ((3, 3), (1, 1))]
)
def test_pooling_equals_adaptive_average_pooling(native: tuple[int, int], wanted: tuple[int, int]) -> None:
    regions = np.random.default_rng(0).standard_normal((native[0] * native[1], 6))
    matrix = pooling(native, wanted)
    assert matrix is not None
    image = torch.from_numpy(regions.T.reshape(1, 6, *native))
    expected = torch.nn.functional.adaptive_avg_pool2d(image, wanted)[0].flatten(1).T.numpy()
    np.testing.assert_allclose(matrix @ regions, expected, rtol=1e-5, atol=1e-6)


def test_the_native_grid_is_left_as_it_is() -> None:
    assert pooling((14, 14), decoder_grid((14, 14), 14)) is None
    assert pooling((7, 9), decoder_grid((7, 9), "native")) is None


def test_boxes_cannot_be_pooled_and_the_setting_is_named() -> None:
    assert decoder_grid(None, "native") is None
    assert pooling(None, None) is None
    with pytest.raises(CacheError, match=r"train\.grid is 14, but .* boxes.*Set train\.grid to native"):
        decoder_grid(None, 14)
