"""The feature cache as it lies on the disk: layout, fingerprint, shards, manifest.

Owns the format, which `docs/feature-cache.md` describes to other programs. Does not know how features are made, nor
who reads them; imports no library that reads or writes arrays.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import CacheError
from pipeline.files import read_json, sha256_of_json

ARRAY, MANIFEST, GROUP = "regions", "manifest.json", "zarr.json"
CODEC = "zstd-1, crc32c"
REMEDY = 'Run "dvc repro encode".'

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Layout:
    """The shape of a cache, apart from its rows.

    Attributes:
        grid: rows and columns of regions; a row of the array holds rows x columns of them, row-major.
        channels: C.
        dtype: of the features.
        shard_images: rows a shard; the last shard may hold fewer.
    """

    grid: tuple[int, int]
    channels: int
    dtype: Dtype
    shard_images: int

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

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
        """Its path inside the finished store, as the zarr specification has it."""
        return f"{ARRAY}/c/{self.number}/0/0"


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


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """The SHA-256 of everything that determines an image's features, apart from the image."""
    return sha256_of_json(dict(fields))


def plan(fingerprint: str, image_hashes: Sequence[str], layout: Layout) -> list[Shard]:
    """Deal the rows to shards, each named by what determines its bytes."""
    size = layout.shard_images
    starts = range(0, len(image_hashes), size)
    pieces = [image_hashes[start : start + size] for start in starts]
    return [
        Shard(number, start, start + len(piece), sha256_of_json([fingerprint, size, layout.dtype, list(piece)]))
        for number, (start, piece) in enumerate(zip(starts, pieces, strict=True))
    ]


def attributes(fields: Mapping[str, Any], grid: tuple[int, int], ids: Sequence[str]) -> dict[str, Any]:
    """What the group's attributes say."""
    return {"grid": list(grid), "fingerprint": fingerprint_of(fields), "fields": dict(fields), "ids": list(ids)}


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
    document = read_json(path / MANIFEST, made_by="encode")
    try:
        shards = tuple(ShardRecord(**record) for record in document["shards"])
        return Manifest(document["fingerprint"], document["images_sha256"], shards)
    except (TypeError, KeyError) as error:
        raise CacheError(f"{path / MANIFEST} is not a manifest of this format ({error}). {REMEDY}") from error


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the store at `path`.

    Raises:
        MissingError: there is no store.
        CacheError: its metadata is not of this format.
    """
    document = read_json(path / GROUP, made_by="encode")
    try:
        found = {key: document["attributes"][key] for key in ("grid", "fingerprint", "fields", "ids")}
    except (TypeError, KeyError) as error:
        raise CacheError(f"{path / GROUP} lacks the attribute {error}. {REMEDY}") from error
    return found


def read_shape(path: Path) -> tuple[tuple[int, int, int], str, int]:
    """Shape (N, R, C), dtype and rows a shard of the array, from its metadata."""
    document = read_json(path / ARRAY / GROUP, made_by="encode")
    try:
        images, cells, channels = document["shape"]
        return (
            (images, cells, channels),
            document["data_type"],
            document["chunk_grid"]["configuration"]["chunk_shape"][0],
        )
    except (TypeError, KeyError, ValueError) as error:
        raise CacheError(
            f"{path / ARRAY / GROUP} does not describe (image, cell, channel): {error}. {REMEDY}"
        ) from error


def expected_shards(images: int, shard_images: int) -> int:
    """How many shards hold that many images."""
    return math.ceil(images / shard_images)
