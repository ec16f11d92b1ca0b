"""Bytes for features: the same on every machine, zero exact, the error at most half a step."""

import numpy as np
import pytest

from pipeline.errors import CacheError
from pipeline.features.quantise import calibrate, quantise, restore
from pipeline.features.store import Quantisation
from tests.features.builders import features


def plainly(x: np.float32, scale: float, zero: int) -> int:
    """The formula of docs/feature-cache.md, one number at a time; Python's round is half to even too."""
    return min(255, max(0, round(float(x / np.float32(scale))) + zero))


def test_bytes_follow_the_formula_number_by_number() -> None:
    regions = features(9, 11, 7) * np.float32(3.7)
    quantisation = calibrate(regions[:2])  # of few images, so that later ones leave the range
    found = quantise(regions, quantisation)
    assert found.dtype == np.uint8
    for place in np.ndindex(regions.shape):
        channel = place[-1]
        scale, zero = quantisation.scale[channel], quantisation.zero[channel]
        assert found[place] == plainly(np.float32(regions[place]), scale, zero)
        meant = (np.float32(int(found[place]) - zero)) * np.float32(scale)
        assert restore(found, quantisation)[place] == meant


def test_a_feature_between_two_bytes_is_divided_and_not_multiplied_by_a_reciprocal() -> None:
    scale = np.random.default_rng(0).random(40).astype(np.float32)
    between = (np.arange(255)[:, None] + np.float32(0.5)) * scale
    found = quantise(between, Quantisation(tuple(scale.astype(float).tolist()), (0,) * 40))
    expected = [[plainly(x, float(one), 0) for x, one in zip(row, scale, strict=True)] for row in between]
    assert found.tolist() == expected


def test_known_features_have_known_bytes() -> None:
    quantisation = calibrate([np.array([[255, -51, 0], [0, 204, 0]], np.float32)])
    assert quantisation == Quantisation((1.0, 1.0, 1.0), (0, 51, 0))
    regions = np.array([[2.5, -50.5, 7.2], [3.5, 300, -1], [1e30, -1e30, 254.51]], np.float32)
    stored = quantise(regions, quantisation)
    assert stored.tolist() == [[2, 1, 7], [4, 255, 0], [255, 0, 255]]
    assert restore(stored, quantisation).tolist() == [[2, -50, 7], [4, 204, 0], [255, -51, 255]]


def test_a_channel_without_negatives_is_its_maximum_in_255_steps() -> None:
    regions = np.abs(features())
    quantisation = calibrate(regions)
    highest = regions.max(axis=(0, 1)).astype(np.float64)
    assert quantisation.zero == (0,) * 5
    assert quantisation.scale == tuple(float(np.float32(value / 255)) for value in highest)
    assert (quantise(regions, quantisation).max(axis=(0, 1)) == 255).all()


def test_zero_is_exact_and_the_rest_within_half_a_step() -> None:
    regions = features(8, 31, 13) * np.geomspace(1e-6, 1e4, 13).astype(np.float32)
    quantisation = calibrate(regions)
    assert min(quantisation.zero) > 0  # these channels have both signs
    restored = restore(quantise(regions, quantisation), quantisation)
    assert restored.dtype == np.float32
    assert (restored[regions == 0] == 0).all()
    steps = np.abs(restored.astype(np.float64) - regions) / np.asarray(quantisation.scale)
    assert 0.4 < steps.max() < 0.501


def test_a_channel_that_never_spoke_keeps_later_values_coarsely() -> None:
    regions = np.array([[0, 0, -2, 1], [0, 0, 8, 3]], np.float32)
    quantisation = calibrate([regions])
    assert (quantisation.scale[0], quantisation.zero[0]) == (quantisation.scale[2], quantisation.zero[2])
    later = np.array([[7.0, -1.9, 8.0, 3.0]], np.float32)
    restored = restore(quantise(later, quantisation), quantisation)
    np.testing.assert_allclose(restored, later, atol=10 / 255)
    assert restore(quantise(np.zeros((1, 4), np.float32), quantisation), quantisation).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("silence", [0.0, 1e-44])
def test_silence_everywhere_is_a_quantisation_too(silence: float) -> None:
    regions = np.full((2, 3), silence, np.float32)
    quantisation = calibrate([regions])
    assert quantisation == Quantisation((1.0, 1.0, 1.0), (0, 0, 0))
    assert (quantise(regions, quantisation) == 0).all()


def test_scales_are_those_of_all_images_whatever_their_order() -> None:
    regions = features()
    assert calibrate(iter(regions)) == calibrate(regions[::-1]) == calibrate([regions.reshape(-1, 5)])
    assert calibrate(regions) != calibrate(regions[:3])


def test_scales_survive_features_that_are_no_numbers() -> None:
    regions = features()
    damaged = regions.copy()
    damaged[4, 2] = [np.nan, np.inf, -np.inf, np.nan, 0]
    assert calibrate(damaged) == calibrate(regions)  # image 4 is zeros: naming it is left to whoever writes it


def test_scales_need_an_image() -> None:
    with pytest.raises(CacheError, match=r"encode\.dtype uint8 need at least one image"):
        calibrate([])


def test_scales_are_exactly_float32() -> None:
    quantisation = calibrate(features())
    assert all(float(np.float32(scale)) == scale for scale in quantisation.scale)
    assert all(type(zero) is int for zero in quantisation.zero)


def test_floats_mean_themselves() -> None:
    stored = features().astype(np.float16)
    restored = restore(stored, None)
    assert restored.dtype == np.float32
    assert np.array_equal(restored, stored)
