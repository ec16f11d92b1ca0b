"""Reading every byte of a cache, and judging it by its manifest and by a data set.

Owns what counts as broken, missing, stale or stray. Reads only: the cheap checks that every opening makes are
`integrity`'s, and mending is not its matter. Apart from it, so that an edit here neither encodes nor trains again.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.datasets.dataset import ImageFile
from pipeline.errors import CacheError
from pipeline.features.integrity import check_ids, whole_rows
from pipeline.features.store import (
    ARRAY,
    GROUP,
    MANIFEST,
    Layout,
    Manifest,
    Shard,
    ShardRecord,
    fingerprint_of,
    plan,
    read_attributes,
    read_layout,
    read_manifest,
    read_shape,
)
from pipeline.files import sha256_of_json

PART = 256  # files that wait for the threads at once: a million images must not be a million futures
NAMED = 3  # images named in a reason

Item = TypeVar("Item")
Result = TypeVar("Result")

Kind = Literal["broken", "missing", "refused", "stale", "stray", "changed"]


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be.

    Attributes:
        kind: broken, its bytes are not those written; missing, the manifest lists it and it is not there; refused, a
            repair would change the bytes that the manifest lists; stale, the data set asks for other rows; stray, it
            does not belong there; changed, a source image is not the one that ingest saw.
        file: inside the store, or of the source image.
        start: its first row.
        stop: the row after its last.
        reason: what was expected and found.
    """

    kind: Kind
    file: str
    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class Store:
    """What a store says of itself, and what a data set says it should hold.

    Attributes:
        path: of the store.
        manifest: of it.
        layout: from its metadata.
        said: the attributes of its group.
        shape: (N, R, C) of its array.
        planned: the shards of the data set, by the store's own fingerprint and layout.
    """

    path: Path
    manifest: Manifest
    layout: Layout
    said: dict[str, Any]
    shape: tuple[int, int, int]
    planned: tuple[Shard, ...]


@dataclass(frozen=True)
class Digest:
    """A file as it was read: its hash and size, or why it cannot be read."""

    sha256: str
    bytes: int
    trouble: OSError | None = None


def open_store(path: Path, images: Sequence[ImageFile]) -> Store:
    """Read a store's metadata.

    Raises:
        MissingError: there is none.
        CacheError: its metadata cannot be understood, so that its shards cannot be judged.
    """
    manifest, layout, said, (shape, _, _) = (
        read_manifest(path),
        read_layout(path),
        read_attributes(path),
        read_shape(path),
    )
    planned = plan(said["fingerprint"], [image.sha256 for image in images], layout)
    return Store(path, manifest, layout, said, shape, tuple(planned))


def _in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Read many files, a thread a core and a few hundred kilobytes of each at a time; in order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hash") as pool:
        for start in range(0, len(items), PART):
            yield from pool.map(work, items[start : start + PART])


def digest(path: Path) -> Digest:
    """Read one file."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            return Digest(found, os.fstat(file.fileno()).st_size)
    except OSError as error:  # of that file: the others are still to be read
        return Digest("", 0, error)


def audit_metadata(store: Store, images: Sequence[ImageFile]) -> list[Fault]:
    """Hold the metadata against each other and against the data set, and look for files that are not the store's."""
    count = store.shape[0]
    broken = [Fault("broken", file, 0, count, reason) for file, reason in _contradictions(store)]
    stray = [Fault("stray", file, 0, 0, "it is no file of the store") for file in _stray(store)]
    try:
        check_ids(store.path, store.said["ids"], [image.id for image in images])
    except CacheError as error:
        return [*broken, *stray, Fault("stale", GROUP, 0, count, str(error).partition(" Run ")[0])]
    same_keys = [shard.key for shard in store.planned] == [record.key for record in store.manifest.shards]
    if same_keys and store.manifest.images_sha256 != sha256_of_json([image.sha256 for image in images]):
        broken.append(Fault("broken", MANIFEST, 0, count, "images_sha256 is not that of the images its shards hold"))
    return [*broken, *stray]


def _contradictions(store: Store) -> Iterator[tuple[str, str]]:
    manifest, said, count = store.manifest, store.said, store.shape[0]
    if fingerprint_of(said["fields"]) != said["fingerprint"]:
        yield GROUP, "its fingerprint is not that of its fields"
    if manifest.fingerprint != said["fingerprint"]:
        yield MANIFEST, f"its fingerprint is {manifest.fingerprint[:12]}, but {GROUP} says {said['fingerprint'][:12]}"
    if len(said["ids"]) != count:
        yield f"{ARRAY}/{GROUP}", f"it describes {count:,} images, but {GROUP} lists {len(said['ids']):,} ids"
    size = store.layout.shard_images
    wanted = [(start, min(size, count - start)) for start in range(0, count, size)]
    listed = [(record.start, record.rows) for record in manifest.shards]
    files = [Shard(number, 0, 0, "").file for number in range(len(wanted))]
    if listed != wanted or [record.file for record in manifest.shards] != files:
        yield MANIFEST, f"its {len(listed):,} shards are not those of {count:,} images in shards of {size:,}"


def _stray(store: Store) -> list[str]:
    own = {MANIFEST, GROUP, f"{ARRAY}/{GROUP}", *(record.file for record in store.manifest.shards)}
    there = (path for path in store.path.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(file for path in there if (file := path.relative_to(store.path).as_posix()) not in own)


def audit_shards(store: Store, records: Sequence[ShardRecord], advance: Callable[[int], object]) -> list[Fault]:
    """Read shards and compare them with the manifest.

    Args:
        store: from `open_store`.
        records: of its manifest; those to read.
        advance: called with the bytes of each shard that has been read.
    """
    faults = []
    for record, fault in zip(records, _in_parallel(partial(_shard_fault, store), records), strict=True):
        faults.append(fault)
        advance(record.bytes)
    return [fault for fault in faults if fault is not None]


def _shard_fault(store: Store, record: ShardRecord) -> Fault | None:
    found, stop = digest(store.path / record.file), record.start + record.rows
    if isinstance(found.trouble, FileNotFoundError):
        return Fault("missing", record.file, record.start, stop, "it is not there")
    if found.trouble is not None:
        return Fault("broken", record.file, record.start, stop, f"it cannot be read: {found.trouble.strerror}")
    damaged = _damaged_rows(store, record)
    if (found.sha256, found.bytes) != (record.sha256, record.bytes):
        return Fault("broken", record.file, record.start, stop, _damage(store, record, found, damaged))
    if damaged is None:
        return None
    return Fault("refused", record.file, record.start, stop, f"{damaged}; so it was when the store was put together")


def _damage(store: Store, record: ShardRecord, found: Digest, damaged: str | None) -> str:
    """Why a shard is not what was written, as precisely as its own checksums allow."""
    other = next((one.file for one in store.manifest.shards if one.sha256 == found.sha256), None)
    if other is not None:
        return f"it holds what belongs in {other}"
    if found.bytes != record.bytes:
        return f"expected {record.bytes:,} bytes, found {found.bytes:,}"
    return damaged or f"expected SHA-256 {record.sha256}, found {found.sha256}, though the checksum of every row fits"


def _damaged_rows(store: Store, record: ShardRecord) -> str | None:
    """What a shard's own checksums say is damaged."""
    try:
        whole = whole_rows(store.path / record.file, store.layout.shard_images, record.rows)
    except (CacheError, OSError):
        return "its index is damaged"
    rows = [record.start + row for row, fits in enumerate(whole) if not fits]
    if not rows:
        return None
    return f"{len(rows):,} of its {record.rows:,} rows {_are(rows)} damaged: {_rows(rows, store.said['ids'])}"


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _rows(rows: Sequence[int], ids: Sequence[str]) -> str:
    named = ", ".join(f"{row:,} ({ids[row]})" for row in rows[:NAMED] if row < len(ids))
    return f"{named}, ..." if len(rows) > NAMED else named


def audit_plan(store: Store, images: Sequence[ImageFile], known: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Compare the shards of the manifest with those that the data set asks for.

    Args:
        store: from `open_store`.
        images: of the data set, in row order.
        known: by key, the image hashes of shards that were encoded here: a key alone says that something has
            changed, not what.
    """
    faults = []
    for number, record in enumerate(store.manifest.shards):
        stop = record.start + record.rows
        if number >= len(store.planned):
            reason = f"the data set lists {len(images):,} images only"
            faults.append(Fault("stale", record.file, record.start, stop, reason))
        elif record.key != store.planned[number].key:
            reason = _change(store, record, images, known.get(record.key, ()))
            faults.append(Fault("stale", record.file, record.start, stop, reason))
    for shard in store.planned[len(store.manifest.shards) :]:
        reason = f"not encoded yet: the data set lists more images, from {images[shard.start].id} on"
        faults.append(Fault("stale", shard.file, shard.start, shard.stop, reason))
    return faults


def _change(store: Store, record: ShardRecord, images: Sequence[ImageFile], hashes: Sequence[str]) -> str:
    """What differs in a shard whose key is not the planned one."""
    own = images[record.start : record.start + store.layout.shard_images]
    held = store.said["ids"][record.start : record.start + record.rows]
    if [image.id for image in own] != list(held):
        return "the data set lists other images in these rows"
    changed = [image.id for image, known in zip(own, hashes, strict=False) if image.sha256 != known]
    if changed:
        more = ", ..." if len(changed) > NAMED else ""
        return f"encoded before {', '.join(changed[:NAMED])}{more} {'was' if len(changed) == 1 else 'were'} changed"
    return "encoded before an image of it was changed"


def audit_sources(folder: Path, images: Sequence[ImageFile], advance: Callable[[int], object]) -> list[Fault]:
    """Read every source image and compare it with what ingest saw.

    Args:
        folder: where the files lie.
        images: of the data set, in row order.
        advance: called with the number of images that have been read.
    """
    faults = []
    for row, found in enumerate(_in_parallel(digest, [folder / image.file for image in images])):
        reason = _source_trouble(images[row], found)
        if reason is not None:
            faults.append(Fault("changed", str(folder / images[row].file), row, row + 1, reason))
        advance(1)
    return faults


def _source_trouble(image: ImageFile, found: Digest) -> str | None:
    if isinstance(found.trouble, FileNotFoundError):
        return "it is gone since ingest saw it"
    if found.trouble is not None:
        return f"it cannot be read: {found.trouble.strerror}"
    return None if found.sha256 == image.sha256 else "it has changed since ingest saw it"
