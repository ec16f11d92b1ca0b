"""Writing the cache: the bytes of a shard, and the finished store from finished shards.

Owns how shards become files. Does not know what makes features, nor the order of the work.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore, StoreLike

from pipeline.errors import CacheError
from pipeline.features.store import (
    ARRAY,
    MANIFEST,
    Layout,
    Manifest,
    Shard,
    ShardRecord,
    attributes,
    fingerprint_of,
    manifest_json,
)
from pipeline.files import replacing, replacing_folder, sha256, sha256_of_json, write_json


def define(store: StoreLike, layout: Layout, images: int) -> "zarr.Array[Any]":
    """Create the array `regions` (N, R, C) in a store: one image a chunk, a checksum on each."""
    return zarr.create_array(
        store,
        name=ARRAY,
        shape=(images, layout.cells, layout.channels),
        chunks=(1, layout.cells, layout.channels),
        shards=(layout.shard_images, layout.cells, layout.channels),
        dtype=layout.dtype,
        # On tf_efficientnet_lite2's features plain zstd-1 needs 0.11 of raw, Blosc's with byte shuffle 0.15.
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        dimension_names=("image", "cell", "channel"),
        config={"write_empty_chunks": True},  # an all-zero image is a fact, not an absence
    )


def to_dtype(regions: np.ndarray, layout: Layout, names: Sequence[str]) -> np.ndarray:
    """Round features to what the cache holds.

    Args:
        regions: (B, R, C) float32.
        layout: has the dtype.
        names: B names, for the message.

    Raises:
        CacheError: a feature is no number, or beyond what the dtype can hold.
    """
    with np.errstate(over="ignore"):
        rounded = regions.astype(layout.dtype)
    whole = np.isfinite(rounded).all(axis=(1, 2))
    if not whole.all():
        row = int(np.argmin(whole))
        largest = float(np.abs(regions[row]).max())
        reason = f"holds {largest:g}, beyond {np.finfo(layout.dtype).max:g}" if np.isfinite(largest) else "is no number"
        raise CacheError(
            f"The features of {names[row]} do not fit {layout.dtype}: one {reason}. Set encode.dtype or "
            "encode.precision to float32; if it stays so, the weights are damaged."
        )
    return rounded


def shard_bytes(regions: np.ndarray, layout: Layout) -> bytes:
    """The file of one shard.

    Args:
        regions: (n, R, C) in the layout's dtype, n at most `shard_images`.
        layout: of the cache.
    """
    scratch = MemoryStore()
    define(scratch, layout, len(regions))[:] = regions
    return scratch._store_dict[f"{ARRAY}/c/0/0/0"].to_bytes()


def write_shard(path: Path, regions: np.ndarray, layout: Layout) -> int:
    """Write one shard atomically; returns its bytes.

    Raises:
        SpaceError: the disk is full.
    """
    content = shard_bytes(regions, layout)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def assemble(
    path: Path,
    shards: Sequence[tuple[Shard, Path]],
    layout: Layout,
    fields: Mapping[str, Any],
    ids: Sequence[str],
    image_hashes: Sequence[str],
) -> None:
    """Put finished shards together as the store at `path`, which is there whole or not at all.

    The shards are linked, so that a run killed before DVC has cached the store loses nothing and the disk holds
    them once; where links are impossible they are copied.

    Args:
        path: of the store.
        shards: each with the file that holds it.
        layout: of the cache.
        fields: of the fingerprint.
        ids: of the images, in row order.
        image_hashes: of the images, in row order.
    """
    with replacing_folder(path) as folder:
        group = zarr.create_group(folder, attributes=attributes(fields, layout.grid, ids))
        define(group.store, layout, len(ids))
        records = []
        for shard, source in shards:
            target = folder / shard.file
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)
            size = target.stat().st_size
            records.append(ShardRecord(shard.file, shard.start, shard.rows, size, sha256(target), shard.key))
        manifest = Manifest(fingerprint_of(fields), sha256_of_json(list(image_hashes)), tuple(records))
        write_json(folder / MANIFEST, manifest_json(manifest))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links; a full disk fails again and is told
        shutil.copyfile(source, target)
