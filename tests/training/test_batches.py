"""Every image once an epoch, with all its captions, in an order that the seed decides."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.errors import CacheError
from pipeline.features.grid import pooling
from pipeline.features.quantise import restore
from pipeline.features.store import Quantisation
from pipeline.language.captions import EncodedCaptions
from pipeline.training.batches import Batch, CaptionedImages, Regions, View
from tests.training.conftest import MemoryReader

# rows 0..6; row 3 has no caption, row 5 belongs to another split
CAPTIONS = {
    0: [[1, 4, 2]],
    1: [[1, 5, 2], [1, 6, 7, 8, 2]],
    2: [[1, 9, 9, 2]],
    4: [[1, 2]],
    5: [[1, 7, 2]],
    6: [[1, 8, 2]],
}


def images(reader: MemoryReader, grid: tuple[int, int] = (2, 3)) -> CaptionedImages:
    rows = [row for row, own in CAPTIONS.items() for _ in own]
    encoded = EncodedCaptions.of(rows, [caption for own in CAPTIONS.values() for caption in own])
    regions = Regions(cast(Any, reader), grid, torch.device("cpu"), torch.float32)
    return CaptionedImages(encoded, [0, 1, 2, 3, 4, 6], regions)


def said(batches: list[Batch]) -> list[list[int]]:
    found = []
    for batch in batches:
        for words, lengths in zip(batch.captions.tolist(), batch.lengths.tolist(), strict=True):
            found += [line[:length] for line, length in zip(words, lengths, strict=True) if length]
    return found


def test_an_epoch_holds_every_caption_once() -> None:
    reader = MemoryReader(7)
    found = said(list(images(reader).epoch(2, seed=1, epoch=0)))
    assert sorted(found) == sorted(caption for row, own in CAPTIONS.items() if row != 5 for caption in own)


def test_regions_belong_to_their_captions() -> None:
    reader = MemoryReader(7)
    for batch in images(reader).epoch(4, seed=1, epoch=0):
        for regions, words, lengths in zip(batch.regions, batch.captions, batch.lengths, strict=True):
            row = next(row for row, own in CAPTIONS.items() if words[0, : lengths[0]].tolist() in own)
            np.testing.assert_array_equal(regions.numpy(), reader.features[row].astype(np.float32))


def test_longest_first_within_a_batch_and_an_image() -> None:
    for batch in images(MemoryReader(7)).epoch(6, seed=0, epoch=0):
        assert batch.lengths[:, 0].tolist() == sorted(batch.lengths[:, 0].tolist(), reverse=True)
        assert (batch.lengths.diff(dim=1) <= 0).all()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = []
    for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0)):
        reader = MemoryReader(7)
        list(images(reader).epoch(2, seed, epoch))
        orders.append(reader.asked)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]
    assert orders[2] != orders[3]  # seed and epoch are two numbers, not their sum


def test_an_epoch_can_be_entered_in_the_middle() -> None:
    whole = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3)))
    start = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3))[:1])
    rest = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3, first=1)))
    assert start + rest == whole


def test_reading_is_ahead_but_no_row_is_read_twice() -> None:
    reader = MemoryReader(7)
    batches = images(reader).epoch(1, seed=1, epoch=0)
    next(batches)
    assert len(reader.asked) == 3
    list(batches)
    assert sorted(row for rows in reader.asked for row in rows) == [0, 1, 2, 4, 6]


def test_regions_are_pooled_to_the_decoders_grid() -> None:
    reader = MemoryReader(7)
    batch = next(images(reader, (3, 2)).in_order(1))
    matrix = pooling((2, 3), (3, 2))
    assert matrix is not None
    np.testing.assert_allclose(batch.regions[0].numpy(), matrix @ reader.features[0].astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_in_order_goes_by_row(size: int) -> None:
    reader = MemoryReader(7)
    assert len(said(list(images(reader).in_order(size)))) == 6
    assert sorted(row for rows in reader.asked for row in rows) == [0, 1, 2, 4, 6]


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


def test_bytes_are_pooled_after_they_are_restored() -> None:
    stored, quantisation = every_byte(7)
    matrix = pooling((16, 16), (3, 5))
    assert matrix is not None
    seen = View((16, 16), (3, 5), quantisation, CPU, torch.float32).see(stored)
    expected = matrix.astype(np.float64) @ restore(stored[0], quantisation).astype(np.float64)
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-4)


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
