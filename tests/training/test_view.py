"""What a decoder sees of stored features: restored, pooled and converted to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import CacheError
from pipeline.features.grid import pooling
from pipeline.features.quantise import restore
from pipeline.features.store import Quantisation
from pipeline.training.view import View

CPU = torch.device("cpu")


def every_byte(channels: int = 211) -> tuple[np.ndarray, Quantisation]:
    """(1, 256, C) bytes, every one in every channel, and scales of all sizes."""
    generator = np.random.default_rng(5)
    scale = np.geomspace(1e-20, 1e20, channels).astype(np.float32) * generator.random(channels, np.float32)
    zero = generator.integers(0, 256, channels)
    stored = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], channels, axis=2)
    return stored, Quantisation(tuple(scale.astype(float).tolist()), tuple(zero.tolist()))


def test_bytes_are_restored_on_the_device_to_the_last_bit() -> None:
    stored, quantisation = every_byte()
    seen = View((16, 16), (16, 16), quantisation, CPU, torch.float32).see(stored)
    assert seen.dtype == torch.float32
    assert np.array_equal(seen.numpy().view(np.uint32), restore(stored, quantisation).view(np.uint32))


def test_cells_come_as_they_are_with_the_pooling_to_look_through() -> None:
    stored, quantisation = every_byte(7)
    view = View((16, 16), (3, 5), quantisation, CPU, torch.float32)
    assert view.see(stored).shape == stored.shape
    matrix = pooling((16, 16), (3, 5))
    assert view.pooling is not None
    assert matrix is not None
    assert np.array_equal(view.pooling.numpy(), matrix)
    assert View((16, 16), (16, 16), quantisation, CPU, torch.float32).pooling is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_image_is_seen_as_it_is_among_others(dtype: type[np.floating]) -> None:
    stored = np.random.default_rng(2).standard_normal((9, 64, 131)).astype(dtype)
    view = View((8, 8), (14, 14), None, CPU, torch.float32)
    among = view.see(stored)
    for image in (0, 5, 8):
        assert torch.equal(view.see(stored[[image]])[0], among[image])


def test_boxes_are_seen_as_they_are() -> None:
    stored = np.random.default_rng(2).standard_normal((2, 5, 3)).astype(np.float16)
    seen = View(None, None, None, CPU, torch.float32).see(stored)
    assert np.array_equal(seen.numpy(), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("native", "wanted", "told"),
    [(None, (2, 3), "of grid 2 x 3, but these have none"), ((2, 3), None, r"of grid none \(boxes\), but these have 2")],
)
def test_a_decoder_of_boxes_sees_no_grid(native: Any, wanted: Any, told: str) -> None:
    with pytest.raises(CacheError, match=told):
        View(native, wanted, None, CPU, torch.float32)


def test_float16_becomes_bfloat16_to_the_same_bits() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(4, 128, 128)
    for stored in (every, every[:, ::2]):
        seen = View(None, None, None, CPU, torch.bfloat16).see(stored)
        expected = torch.from_numpy(stored).to(torch.bfloat16)
        assert torch.equal(seen.isnan(), expected.isnan())
        assert torch.equal(seen.nan_to_num(0.5), expected.nan_to_num(0.5))
