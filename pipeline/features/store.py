"""The feature cache as it lies on the disk: layout, fingerprint, shards, manifest.

Owns the format, which `docs/feature-cache.md` describes to other programs. Does not know how features are made, nor
who reads them; imports no library that reads or writes arrays.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError, DataError
from pipeline.files import read_json, sha256_of_json

ARRAY, MANIFEST, GROUP = "regions", "manifest.json", "zarr.json"
ATTRIBUTES = ("grid", "quantisation", "fingerprint", "fields", "ids")
_FILES = re.compile(rf"{ARRAY}/c/\d+/0/0", re.ASCII)  # of shards
REMEDY = 'Run "dvc repro encode".'

Dtype = Literal["float16", "float32", "uint8"]
Codec = Literal["zstd", "blosc", "none"]

# What each codec is in the array's metadata: the codecs of an inner chunk, by their names.
CHUNK_CODECS: dict[Codec, tuple[str, ...]] = {
    "zstd": ("bytes", "zstd", "crc32c"),
    "blosc": ("bytes", "blosc", "crc32c"),
    "none": ("bytes", "crc32c"),
}


@dataclass(frozen=True)
class Quantisation:
    """What a stored byte q means, channel by channel: the feature (q - zero) x scale.

    Attributes:
        scale: C steps, each positive and exactly a float32.
        zero: C bytes; the one that means exactly 0.0 (0 where no feature is negative).
    """

    scale: tuple[float, ...]
    zero: tuple[int, ...]

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """(C,) float32."""
        return np.asarray(self.scale, np.float32)

    @cached_property
    def zeros(self) -> NDArray[np.float32]:
        """(C,) float32, as the arithmetic wants them."""
        return np.asarray(self.zero, np.float32)


@dataclass(frozen=True)
class Layout:
    """The shape of a cache, apart from its rows.

    Attributes:
        grid: rows and columns of regions, row-major; None for regions without a place, such as boxes.
        cells: R, rows x columns where there is a grid.
        channels: C.
        dtype: of the features as stored.
        codec: compresses a row, without loss.
        shard_images: rows a shard; the last shard may hold fewer.
        quantisation: what a byte means, exactly where the dtype is uint8.
    """

    grid: tuple[int, int] | None
    cells: int
    channels: int
    dtype: Dtype
    codec: Codec
    shard_images: int
    quantisation: Quantisation | None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's features before compression."""
        return self.cells * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """Consecutive rows that share a file.

    Attributes:
        number: its place, from 0.
        start: its first row.
        stop: the row after its last.
        key: a hash of everything that determines its bytes; its name while the cache is not finished.
    """

    number: int
    start: int
    stop: int
    key: str

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        """Its path inside the finished store."""
        return shard_file(self.number)


@dataclass(frozen=True)
class ShardRecord:
    """One shard as the manifest lists it."""

    file: str
    start: int
    rows: int
    bytes: int
    sha256: str
    key: str


@dataclass(frozen=True)
class Manifest:
    """What a complete store holds; written last, so that a store without it is not one."""

    fingerprint: str
    images_sha256: str
    shards: tuple[ShardRecord, ...]


def shard_file(number: int) -> str:
    """The path of a shard inside the store, as the zarr specification has it."""
    return f"{ARRAY}/c/{number}/0/0"


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """The SHA-256 of everything that determines an image's features, apart from the image."""
    return sha256_of_json(dict(fields))


def plan(fingerprint: str, image_hashes: Sequence[str], layout: Layout) -> list[Shard]:
    """Deal the rows to shards, each named by what determines its bytes."""
    size = layout.shard_images
    meaning = sha256_of_json(quantisation_json(layout.quantisation)) if layout.quantisation else None
    same = [fingerprint, size, layout.dtype, layout.codec, meaning]
    starts = range(0, len(image_hashes), size)
    pieces = [image_hashes[start : start + size] for start in starts]
    return [
        Shard(number, start, start + len(piece), sha256_of_json([*same, list(piece)]))
        for number, (start, piece) in enumerate(zip(starts, pieces, strict=True))
    ]


def attributes(fields: Mapping[str, Any], layout: Layout, ids: Sequence[str]) -> dict[str, Any]:
    """What the group's attributes say."""
    return {
        "grid": list(layout.grid) if layout.grid else None,
        "quantisation": quantisation_json(layout.quantisation),
        "fingerprint": fingerprint_of(fields),
        "fields": dict(fields),
        "ids": list(ids),
    }


def quantisation_json(quantisation: Quantisation | None) -> dict[str, list[float]] | None:
    """A quantisation as JSON has it."""
    return {key: list(values) for key, values in asdict(quantisation).items()} if quantisation else None


def quantisation_of(document: Mapping[str, Sequence[float]] | None) -> Quantisation | None:
    """The inverse of `quantisation_json`.

    Raises:
        TypeError, KeyError, ValueError: the document is not what that gives.
    """
    if document is None:
        return None
    return Quantisation(tuple(map(float, document["scale"])), tuple(map(int, document["zero"])))


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it is written."""
    return asdict(manifest)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the store at `path`.

    Raises:
        MissingError: there is no store.
        CacheError: the store was never finished, or its manifest is not one.
    """
    if path.is_dir() and not (path / MANIFEST).exists():
        raise CacheError(f"{path} has no {MANIFEST}, which is written last: the store is not complete. {REMEDY}")
    document = _document(path / MANIFEST)
    with _understanding(path / MANIFEST, "is not a manifest of this format"):
        shards = tuple(map(_record, document["shards"]))
        return Manifest(_of(str, document["fingerprint"]), _of(str, document["images_sha256"]), shards)


@contextlib.contextmanager
def _understanding(path: Path, trouble: str) -> Iterator[None]:
    """Turn what Python raises on JSON of another form into a `CacheError` that names the file."""
    try:
        yield
    except (TypeError, KeyError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise CacheError(f"{path} {trouble} ({error}). {REMEDY}") from error


def _record(said: Mapping[str, Any]) -> ShardRecord:
    record = ShardRecord(**said)
    for field in fields(record):
        _of(field.type, getattr(record, field.name))
    if min(record.start, record.rows - 1, record.bytes) < 0:
        raise ValueError(f"{record.rows} rows from {record.start} on, {record.bytes} bytes")
    if not _FILES.fullmatch(record.file):  # wherever else it led, a repair would write there
        raise ValueError(f"expected a shard such as {shard_file(0)}, found {record.file!r:.60}")
    return record


def _of(kind: Any, said: Any) -> Any:
    if type(said) is not kind:  # True is an instance of int
        raise TypeError(f"expected {kind.__name__}, found {said!r:.60}")
    return said


def _counts(said: Any) -> list[int]:
    """A list of positive numbers."""
    found = [_of(int, one) for one in _of(list, said)]
    if min(found, default=1) < 1:
        raise ValueError(f"expected positive numbers, found {found}")
    return found


def _document(path: Path) -> Any:
    try:
        return read_json(path, made_by="encode")
    except DataError as error:
        raise CacheError(f"{path} is cut short or damaged ({error.__cause__}). {REMEDY}") from error


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the store at `path`.

    Raises:
        MissingError: there is no store.
        CacheError: its metadata is not of this format.
    """
    document = _document(path / GROUP)
    with _understanding(path / GROUP, "lacks an attribute"):
        found = {key: document["attributes"][key] for key in ATTRIBUTES}
    with _understanding(path / GROUP, "has an attribute that is not of this format"):
        for key, kind in (("fingerprint", str), ("fields", dict), ("ids", list)):
            _of(kind, found[key])
        if set(map(type, found["ids"])) - {str}:
            raise TypeError("an id that is no string")
        if found["grid"] is not None:
            _rows, _columns = _counts(found["grid"])
    return found


def read_shape(path: Path) -> tuple[tuple[int, int, int], str, int]:
    """Shape (N, R, C), dtype and rows a shard of the array, from its metadata.

    Raises:
        MissingError: there is no store.
        CacheError: its metadata is not of this format.
    """
    document = _document(path / ARRAY / GROUP)
    with _understanding(path / ARRAY / GROUP, "does not describe (image, cell, channel)"):
        images, cells, channels = _counts(document["shape"])
        shard_images = _counts(document["chunk_grid"]["configuration"]["chunk_shape"])[0]
        return (images, cells, channels), document["data_type"], shard_images


def read_layout(path: Path) -> Layout:
    """The layout of the store at `path`, from its metadata.

    Raises:
        MissingError: there is no store.
        CacheError: its dtype or codecs are not of this format, or its metadata contradict each other.
    """
    (_, cells, channels), dtype, shard_images = read_shape(path)
    said = read_attributes(path)
    grid = None if said["grid"] is None else (said["grid"][0], said["grid"][1])
    known: tuple[Dtype, ...] = get_args(Dtype)
    stored = next((one for one in known if one == dtype), None)
    if stored is None:
        raise CacheError(
            f"{path / ARRAY / GROUP} says data type {dtype!r}; this format knows {', '.join(known)}. {REMEDY}"
        )
    quantisation = _quantisation(path, said["quantisation"], channels)
    if (grid is not None and grid[0] * grid[1] != cells) or (quantisation is None) == (dtype == "uint8"):
        raise CacheError(
            f"{path}: its attributes and its array contradict each other (grid {said['grid']} for {cells} regions; "
            f"quantisation {'absent' if quantisation is None else 'present'} for {dtype}). {REMEDY}"
        )
    return Layout(grid, cells, channels, stored, _codec(path), shard_images, quantisation)


def _quantisation(path: Path, said: Any, channels: int) -> Quantisation | None:
    with _understanding(path / GROUP, "has a quantisation that is not of this format"):
        found = quantisation_of(said)
    if found is not None and (len(found.scale), len(found.zero)) != (channels, channels):
        raise CacheError(
            f"{path / GROUP} has {len(found.scale):,} scales and {len(found.zero):,} zeros for {channels:,} channels. "
            f"{REMEDY}"
        )
    return found


def _codec(path: Path) -> Codec:
    """Which of our codecs the array's metadata describe; a reader of bytes must not guess."""
    document = _document(path / ARRAY / GROUP)
    with _understanding(path / ARRAY / GROUP, "does not describe shards"):
        (sharding,) = document["codecs"]
        outer, inner = _of(str, sharding["name"]), sharding["configuration"]
        names = tuple(_of(str, codec["name"]) for codec in inner["codecs"])
        order = inner["codecs"][0].get("configuration", {}).get("endian", "little")
        place = inner.get("index_location", "end")
    codec = next((codec for codec, known in CHUNK_CODECS.items() if known == names), None)
    if codec is None or outer != "sharding_indexed" or (order, place) != ("little", "end"):
        raise CacheError(
            f"{path / ARRAY / GROUP} says codecs {', '.join(names)} ({order} endian) in {outer} with the "
            f"index at the {place}; this format knows "
            f"{'; '.join(', '.join(known) for known in CHUNK_CODECS.values())}, little endian, in sharding_indexed "
            f"with the index at the end. {REMEDY}"
        )
    return codec


def expected_shards(images: int, shard_images: int) -> int:
    """How many shards hold that many images."""
    return math.ceil(images / shard_images)
