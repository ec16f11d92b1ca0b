"""Writing the cache: files of shards, and the finished store from finished shards.

Owns the array's definition and how shards become files. Does not know what makes features, nor the order of the work.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import StoreLike

from pipeline.features.rows import join_rows
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
from pipeline.files import link, replacing, replacing_folder, sha256, sha256_of_json, write_json


def define(store: StoreLike, layout: Layout, images: int) -> "zarr.Array[Any]":
    """Create the array `regions` (N, R, C) in a store: one image a chunk, a checksum on each."""
    return zarr.create_array(
        store,
        name=ARRAY,
        shape=(images, layout.cells, layout.channels),
        chunks=(1, layout.cells, layout.channels),
        shards=(layout.shard_images, layout.cells, layout.channels),
        dtype=layout.dtype,
        compressors=[*_compressors(layout), Crc32cCodec()],
        fill_value=0,
        dimension_names=("image", "cell", "channel"),
        config={"write_empty_chunks": True},  # an all-zero image is a fact, not an absence
    )


def _compressors(layout: Layout) -> list[ZstdCodec | BloscCodec]:
    if layout.codec == "zstd":
        return [ZstdCodec(level=1)]
    if layout.codec == "blosc":
        return [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=np.dtype(layout.dtype).itemsize)]
    return []


def write_shard(path: Path, rows: Sequence[bytes], layout: Layout) -> int:
    """Write one shard atomically; returns its bytes.

    Args:
        path: of its file.
        rows: from `encode_row`, in order, at most `shard_images` of them.
        layout: of the cache.

    Raises:
        SpaceError: the disk is full.
    """
    content = join_rows(rows, layout.shard_images)
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
        group = zarr.create_group(folder, attributes=attributes(fields, layout, ids))
        define(group.store, layout, len(ids))
        for shard, source in shards:
            target = folder / shard.file
            target.parent.mkdir(parents=True, exist_ok=True)
            link(source, target)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hash") as pool:
            hashes = pool.map(sha256, [folder / shard.file for shard, _ in shards])
            records = [_record(folder, shard, digest) for (shard, _), digest in zip(shards, hashes, strict=True)]
        manifest = Manifest(fingerprint_of(fields), sha256_of_json(list(image_hashes)), tuple(records))
        write_json(folder / MANIFEST, manifest_json(manifest))


def _record(folder: Path, shard: Shard, digest: str) -> ShardRecord:
    size = (folder / shard.file).stat().st_size
    return ShardRecord(shard.file, shard.start, shard.rows, size, digest, shard.key)
