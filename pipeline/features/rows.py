"""The bytes of a row and of a shard, as Zarr's codec `sharding_indexed` lays them out.

A row is one image's features: an inner chunk, rounded, compressed and followed by its checksum. Rows are made where
and when their image is ready, by any thread, and joined when the shard is full: zarr-python would take whole arrays
in one thread. What is written equals what it writes, byte for byte. Does not know files.
"""

from collections.abc import Sequence

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd, blosc
from numcodecs.abc import Codec as Compressor
from numpy.typing import NDArray

from pipeline.errors import CacheError
from pipeline.features.quantise import quantise
from pipeline.features.store import Layout

blosc.use_threads = False  # rows are compressed by many threads at once; one state shared among them would lock

CHECKSUM = 4  # bytes
_ENTRY = 16  # bytes of an index entry: offset and size
_ABSENT = np.uint64(2**64 - 1)
_HALF_LIMIT = 65520.0  # the smallest float32 that rounds beyond float16
_SERIAL = 32_768  # elements; more, and torch would start a team of threads for each thread that calls it


def encode_row(regions: NDArray[np.float32], layout: Layout, name: str) -> bytes:
    """Round or quantise one image's features, compress them, add the checksum.

    Args:
        regions: (R, C) float32.
        layout: of the cache.
        name: of the image, for the message.

    Raises:
        CacheError: a feature is no number, or beyond what the dtype can hold.
    """
    stored = to_stored(regions, layout, name)
    compressor = _compressor(layout)
    content = stored.tobytes() if compressor is None else bytes(compressor.encode(stored))
    return content + _checksum(content)


def to_stored(regions: NDArray[np.float32], layout: Layout, name: str) -> NDArray[np.generic]:
    """Round or quantise one image's features to what the cache holds, (R, C) in the layout's dtype.

    Raises:
        CacheError: a feature is no number, or beyond what the dtype can hold.
    """
    limit = _HALF_LIMIT if layout.dtype == "float16" else np.inf
    if not (-limit < regions.min() and regions.max() < limit):
        raise _unfit(regions, layout, name)
    regions = np.ascontiguousarray(regions, np.float32)
    if layout.dtype == "float32":
        return regions
    if layout.dtype == "float16":
        return _half(regions)
    if layout.quantisation is None:
        raise CacheError("A layout of dtype uint8 needs a quantisation: calibrate it on the first images.")
    return quantise(regions, layout.quantisation)


def _half(regions: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16, half to even: torch has the instruction for it, and is 10 to 50 times as fast as NumPy."""
    import torch

    rounded = np.empty(regions.shape, np.float16)
    parts = zip(*(torch.from_numpy(array.reshape(-1)).split(_SERIAL) for array in (rounded, regions)), strict=True)
    for target, source in parts:
        target.copy_(source)
    return rounded


def _unfit(regions: NDArray[np.float32], layout: Layout, name: str) -> CacheError:
    largest = float(np.abs(regions).max())
    if np.isfinite(largest):
        return CacheError(
            f"The features of {name} do not fit {layout.dtype}: one holds {largest:g}, beyond "
            f"{np.finfo(np.float16).max:g}. Set encode.dtype to float32."
        )
    return CacheError(
        f"The features of {name} hold what is no number. Set encode.precision to float32 if it is another; if it stays "
        "so, the weights, or the file that the features are imported from, are damaged."
    )


def decode_row(row: bytes, layout: Layout) -> NDArray[np.generic]:
    """One image's features, (R, C) in the stored dtype, read-only.

    Raises:
        CacheError: the checksum does not fit, or the row is of another layout.
    """
    if not is_whole(row):
        raise CacheError("A row's checksum does not fit.")
    content = np.frombuffer(row, np.uint8)[:-CHECKSUM]
    compressor = _compressor(layout)
    try:
        plain = content if compressor is None else compressor.decode(content)
        return np.frombuffer(plain, layout.dtype).reshape(layout.cells, layout.channels)
    except (RuntimeError, ValueError) as error:
        raise CacheError(
            f"A row is not {layout.cells} x {layout.channels} {layout.dtype} by codec {layout.codec} ({error})."
        ) from error


def is_whole(row: bytes) -> bool:
    """Whether a row's bytes are those that were written, by its own checksum."""
    return len(row) > CHECKSUM and fits(np.frombuffer(row, np.uint8)[:-CHECKSUM], row[-CHECKSUM:])


def fits(content: bytes | NDArray[np.generic], checksum: bytes | bytearray) -> bool:
    """Whether the checksum is that of the content."""
    return checksum == _checksum(content)


def _compressor(layout: Layout) -> Compressor | None:
    if layout.codec == "zstd":
        return Zstd(level=1)
    if layout.codec == "blosc":
        return Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE, typesize=np.dtype(layout.dtype).itemsize)
    return None


def _checksum(content: bytes | NDArray[np.generic]) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CHECKSUM, "little")


def join_rows(rows: Sequence[bytes], shard_images: int) -> bytes:
    """The file of one shard: its rows one after another, then where each is, then that index's checksum.

    Args:
        rows: at most `shard_images` of them; the index has an entry for each that there could be.
        shard_images: of the layout.
    """
    index = np.full((shard_images, 2), _ABSENT, "<u8")
    sizes = np.array([len(row) for row in rows], "<u8")
    index[: len(rows), 0] = np.cumsum(sizes) - sizes
    index[: len(rows), 1] = sizes
    entries = index.tobytes()
    return b"".join([*rows, entries, _checksum(entries)])


def split_rows(shard: bytes | memoryview, shard_images: int, count: int) -> list[bytes]:
    """The rows of a shard's file, the inverse of `join_rows`; their own checksums are `decode_row`'s to check.

    Args:
        shard: the file's content.
        shard_images: of the layout.
        count: rows the shard must hold.

    Raises:
        CacheError: the file is cut, its index is damaged, or it holds another number of rows.
    """
    content = memoryview(shard)
    if len(content) < index_size(shard_images):
        raise CacheError(f"A shard of {len(content):,} bytes is too short for an index of {shard_images:,} rows.")
    places = read_index(bytes(content[-index_size(shard_images) :]), len(content), count)
    return [bytes(content[offset : offset + size]) for offset, size in places]


def index_size(shard_images: int) -> int:
    """Bytes at a shard's end that say where its rows are."""
    return _ENTRY * shard_images + CHECKSUM


def read_index(index: bytes, shard_bytes: int, count: int) -> list[tuple[int, int]]:
    """Where the rows of a shard are: offset and size of each, checksum included.

    Args:
        index: the last `index_size` bytes of the file.
        shard_bytes: of the whole file.
        count: rows the shard must hold.

    Raises:
        CacheError: the index is damaged, points beyond the rows, or is of another number of rows.
    """
    entries = index[:-CHECKSUM]
    if not fits(entries, index[-CHECKSUM:]):
        raise CacheError("The checksum of a shard's index does not fit.")
    table = np.frombuffer(entries, "<u8").reshape(-1, 2)
    there = (table != _ABSENT).all(axis=1)
    if not there[:count].all() or there[count:].any():
        raise CacheError(f"A shard holds {int(there.sum()):,} rows where {count:,} were expected.")
    places = [(int(offset), int(size)) for offset, size in table[:count]]
    if any(offset + size > shard_bytes - len(index) for offset, size in places):
        raise CacheError("A shard's index points beyond its rows.")
    return places
