"""Rows and shards are, byte for byte, what zarr-python writes; what is damaged is an error."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from pipeline.errors import CacheError
from pipeline.features.rows import decode_row, encode_row, join_rows, split_rows, to_stored
from pipeline.features.store import Codec, Dtype, Layout
from pipeline.features.writer import define
from tests.features.builders import CELLS, CHANNELS, KINDS, features, layout_of


def zarr_shards(stored: NDArray[np.generic], layout: Layout) -> list[bytes]:
    """The shard files that zarr-python itself writes."""
    store = MemoryStore()
    define(store, layout, len(stored))[:] = stored
    count = -(-len(stored) // layout.shard_images)
    return [store._store_dict[f"regions/c/{number}/0/0"].to_bytes() for number in range(count)]


@pytest.mark.parametrize(("dtype", "codec"), KINDS)
@pytest.mark.parametrize(("cells", "channels", "shard_images"), [(CELLS, CHANNELS, 3), (41, 1283, 4), (1, 1, 16)])
def test_shards_are_those_that_zarr_python_writes(
    dtype: Dtype, codec: Codec, cells: int, channels: int, shard_images: int
) -> None:
    regions = features(7, cells, channels)
    layout = layout_of(regions, dtype, codec, shard_images, None)
    rows = [encode_row(image, layout, "x") for image in regions]
    parts = [rows[start : start + shard_images] for start in range(0, len(rows), shard_images)]
    expected = zarr_shards(np.stack([to_stored(image, layout, "x") for image in regions]), layout)
    assert [join_rows(part, shard_images) for part in parts] == expected
    for shard, part in zip(expected, parts, strict=True):
        assert split_rows(shard, shard_images, len(part)) == part
        assert split_rows(memoryview(shard), shard_images, len(part)) == part


@pytest.mark.parametrize(("dtype", "codec"), KINDS)
def test_a_row_comes_back_as_it_was_stored(dtype: Dtype, codec: Codec) -> None:
    regions = features()
    layout = layout_of(regions, dtype, codec)
    for image in regions:
        found = decode_row(encode_row(image, layout, "x"), layout)
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, to_stored(image, layout, "x"))


@pytest.mark.parametrize("codec", ["zstd", "blosc", "none"])
def test_every_flipped_byte_is_an_error(codec: Codec) -> None:
    regions = features()
    layout = layout_of(regions, "float16", codec)
    row = encode_row(regions[0], layout, "x")
    for place in range(len(row)):
        damaged = bytearray(row)
        damaged[place] ^= 16
        with pytest.raises(CacheError, match="checksum does not fit"):
            decode_row(bytes(damaged), layout)
    for cut in (0, 3, 4, len(row) - 1):
        with pytest.raises(CacheError, match="checksum does not fit"):
            decode_row(row[:cut], layout)


@pytest.mark.parametrize("other", [{"cells": 7}, {"codec": "blosc"}, {"dtype": "float32"}, {"codec": "none"}])
def test_a_row_of_another_layout_is_an_error(other: dict[str, object]) -> None:
    regions = features()
    layout = layout_of(regions)
    wrong = replace(layout, **other)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match=rf"not {wrong.cells} x 5 {wrong.dtype} by codec {wrong.codec}"):
        decode_row(encode_row(regions[0], layout, "x"), wrong)


def test_many_threads_write_the_same_bytes() -> None:
    regions = features(40, 23, 307)
    for dtype, codec in KINDS:
        layout = layout_of(regions, dtype, codec)
        alone = [encode_row(image, layout, "x") for image in regions]
        with ThreadPoolExecutor(5) as pool:
            assert list(pool.map(lambda image: encode_row(image, layout, "x"), regions)) == alone  # noqa: B023


def test_float16_is_rounded_half_to_even_as_numpy_rounds() -> None:
    generator = np.random.default_rng(1)
    halves = np.arange(0, 0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)  # every tie that there is
    anything = generator.integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    near = np.concatenate([between, np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(9e4))])
    values = np.concatenate(
        [near, -near, anything[np.abs(anything) < 65520], np.array([0, -0.0, 65519.996], np.float32)]
    )
    layout = layout_of(features())
    found = to_stored(values[None], layout, "x")[0]
    np.testing.assert_array_equal(found.view(np.uint16), values.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_an_error_that_names_the_image(dtype: Dtype, value: float) -> None:
    regions = features()
    layout = layout_of(regions, dtype)
    regions[1, 3, 2] = value
    with pytest.raises(CacheError, match=r"features of b\.jpg hold what is no number\. .*weights, or the file"):
        encode_row(regions[1], layout, "b.jpg")


@pytest.mark.parametrize("value", [65520.0, -65520.0, 70000.0])
def test_what_is_beyond_float16_is_an_error_that_says_what_to_set(value: float) -> None:
    regions = features()
    regions[1, 3, 2] = value
    told = rf"b\.jpg do not fit float16: one holds {abs(value):g}, beyond 65504\. Set encode\.dtype"
    with pytest.raises(CacheError, match=told):
        encode_row(regions[1], layout_of(regions), "b.jpg")
    wide = layout_of(regions, "float32")
    assert decode_row(encode_row(regions[1], wide, "b.jpg"), wide)[3, 2] == value


def test_bytes_need_their_meaning() -> None:
    regions = features()
    layout = replace(layout_of(regions, "uint8"), quantisation=None)
    with pytest.raises(CacheError, match="needs a quantisation"):
        encode_row(regions[0], layout, "x")


def test_rows_are_found_by_the_index_and_not_by_their_order() -> None:
    rows = [b"first row", b"second", b"the third one"]
    whole = join_rows(rows, 3)
    index = np.frombuffer(whole[-52:-4], "<u8").reshape(3, 2)
    assert index.tolist() == [[0, 9], [9, 6], [15, 13]]
    assert join_rows(rows[:2], 3)[-52:-4] == index[:2].tobytes() + b"\xff" * 16


SHARD = join_rows([b"first row", b"second"], 3)
DAMAGES = {
    "cut": (SHARD[:-9], 2, "index does not fit"),
    "cut to nothing": (SHARD[-20:], 2, "too short for an index of 3 rows"),
    "index": (SHARD[:-20] + b"\x01" + SHARD[-19:], 2, "checksum of a shard's index"),
    "a row too few": (SHARD, 3, "holds 2 rows where 3 were expected"),
    "a row too many": (SHARD, 1, "holds 2 rows where 1 were expected"),
    "rows gone": (SHARD[9:], 2, "points beyond its rows"),
}


@pytest.mark.parametrize(("shard", "count", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_an_error(shard: bytes, count: int, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        split_rows(shard, 3, count)
