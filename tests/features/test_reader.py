"""Rows read as another implementation of Zarr reads them, every one of them checked, in memory or not."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from pipeline.errors import CacheError
from pipeline.features.reader import FeatureReader
from pipeline.features.store import Codec, Dtype, Layout, read_layout
from tests.features.builders import FIELDS, IMAGES, KINDS, build, features, layout_of


def made(root: Path, dtype: Dtype = "float16", codec: Codec = "zstd") -> Path:
    values = features()
    return build(root, values, layout_of(values, dtype, codec)).features


def by_tensorstore(path: Path, rows: list[int]) -> np.ndarray:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / 'regions'}/"}}
    return np.asarray(tensorstore.open(spec, read=True).result()[rows].read().result())


@pytest.mark.parametrize("staying", [False, True])
@pytest.mark.parametrize(("dtype", "codec"), KINDS)
def test_rows_are_those_that_tensorstore_reads(tmp_path: Path, dtype: Dtype, codec: Codec, staying: bool) -> None:
    path = made(tmp_path, dtype, codec)
    reader = FeatureReader(path)
    if staying:
        reader.keep([0, 3, 6])
    for rows in ([6], [3, 0, 3, 3, 5], [6, 1, 2, 0, 4, 5, 3], [6, 1, 2, 0, 4, 5, 3]):
        found = reader.read(rows)
        assert found.dtype == np.dtype(dtype)
        assert np.array_equal(found, by_tensorstore(path, rows))
    assert reader.read([]).shape == (0, 6, 5)


def test_rows_go_where_they_are_wanted(tmp_path: Path) -> None:
    path = made(tmp_path)
    target = np.zeros((4, 6, 5), np.float16)
    assert FeatureReader(path).start([5, 2], target[1:3]).result().base is target
    assert np.array_equal(target[1:3], by_tensorstore(path, [5, 2]))
    assert not target[[0, 3]].any()


def test_many_threads_share_a_reader_and_leave_no_file_open(tmp_path: Path) -> None:
    path = made(tmp_path)
    whole, reader = by_tensorstore(path, list(range(IMAGES))), FeatureReader(path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    chance = np.random.default_rng(0)
    asked = [chance.integers(0, IMAGES, 9).tolist() for _ in range(40)]
    with ThreadPoolExecutor(5) as pool:
        for rows, found in zip(asked, pool.map(reader.read, asked), strict=True):
            assert np.array_equal(found, whole[rows])
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208  # what others left open may go meanwhile


@pytest.mark.parametrize("codec", ["zstd", "blosc", "none"])
def test_rows_that_stay_are_read_from_the_disk_once_and_others_each_time(tmp_path: Path, codec: Codec) -> None:
    path = made(tmp_path, codec=codec)
    reader = FeatureReader(path)
    reader.keep([1, 4])
    first = reader.read([4, 1, 0])
    shutil.rmtree(path / "regions/c")
    assert np.array_equal(reader.read([4, 1]), first[:2])
    with pytest.raises(CacheError, match=r"shard regions/c/0/0/0 cannot be read \(it is gone\).*verify --repair"):
        reader.read([0])
    reader.keep([1])
    with pytest.raises(CacheError, match="regions/c/1/0/0"):
        reader.read([4])
    assert np.array_equal(reader.read([1]), first[1:2])


def rewrite(shard: Path, change: Any) -> None:
    content = bytearray(shard.read_bytes())
    shard.unlink()
    shard.write_bytes(bytes(change(content)))


def flipped(content: bytearray, place: int) -> bytearray:
    content[place] ^= 32
    return content


@pytest.mark.parametrize("staying", [False, True])
@pytest.mark.parametrize("codec", ["zstd", "blosc", "none"])
def test_every_flipped_byte_of_a_shard_is_an_error_that_names_it(tmp_path: Path, codec: Codec, staying: bool) -> None:
    path = made(tmp_path, codec=codec)
    shard = path / "regions/c/2/0/0"  # the last: one row, and an index of three
    size = shard.stat().st_size
    for place in range(0, size, 3):
        rewrite(shard, lambda content, place=place: flipped(content, place))
        reader = FeatureReader(path)
        if staying:
            reader.keep(range(7))
        for _ in range(2):  # what is damaged does not stay
            with pytest.raises(CacheError, match=r"shard regions/c/2/0/0 cannot be read \(.*checksum"):
                reader.read([5, 6])
        assert np.isfinite(reader.read([5, 0])).all()
        rewrite(shard, lambda content, place=place: flipped(content, place))
    FeatureReader(path).read([6])


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_cut_while_it_is_read_is_an_error(tmp_path: Path, codec: Codec, opened: bool) -> None:
    path = made(tmp_path, codec=codec)
    reader = FeatureReader(path)
    if opened:  # the place of each row is known by then
        reader.read([0])
    rewrite(path / "regions/c/0/0/0", lambda content: content[:7])
    with pytest.raises(CacheError, match=r"shard regions/c/0/0/0 cannot be read \(.*checksum"):
        reader.read([1])


def other(root: Path, codec: Codec) -> Path:
    """A store of the same layout and images; only a seed, and so the features, are others."""
    values = features()[::-1].copy()
    return build(root, values, layout_of(values, "float16", codec), {**FIELDS, "seed": 2}).features


def replace_whole(path: Path, new: Path) -> None:
    shutil.rmtree(path)
    new.rename(path)


def replace_file_by_file(path: Path, new: Path) -> None:
    """As DVC checks a folder out: it stays, and its files are exchanged."""
    for file in new.rglob("*"):
        if file.is_file():
            file.replace(path / file.relative_to(new))


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("replace", [replace_whole, replace_file_by_file])
@pytest.mark.parametrize("rows", [[], [0, 5]], ids=["opened", "read"])
def test_a_cache_that_is_replaced_while_it_is_read_is_an_error_not_other_features(
    tmp_path: Path, codec: Codec, replace: Callable[[Path, Path], None], rows: list[int]
) -> None:
    path = made(tmp_path, codec=codec)
    reader = FeatureReader(path)
    reader.keep([5])
    held = reader.read(rows)
    replace(path, other(tmp_path / "other", codec))
    for row in (0, 1):
        with pytest.raises(CacheError, match=r"features\.zarr was replaced while it was read\. Run this again\."):
            reader.read([row])
    if rows:  # what is in memory is still of the cache that was opened
        assert np.array_equal(reader.read([5])[0], held[1])


def test_a_cache_that_is_replaced_while_it_is_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path)

    def replaced(place: Path) -> Layout:
        replace_whole(path, other(tmp_path / "other", "zstd"))
        return read_layout(place)

    monkeypatch.setattr("pipeline.features.reader.read_layout", replaced)
    with pytest.raises(CacheError, match="was replaced while it was read"):
        FeatureReader(path)


def test_a_cache_put_together_again_from_the_same_bytes_is_read_on(tmp_path: Path) -> None:
    path = made(tmp_path)
    reader, whole = FeatureReader(path), by_tensorstore(path, list(range(IMAGES)))
    replace_whole(path, made(tmp_path / "again"))
    assert np.array_equal(reader.read([6, 0, 3]), whole[[6, 0, 3]])


def test_an_error_of_the_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FeatureReader(made(tmp_path))

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(CacheError, match=r"regions/c/1/0/0 cannot be read \(Input/output error\)"):
        reader.read([3])
