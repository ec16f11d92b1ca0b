"""Is a cache whole, and is it the one expected?

Owns the checks that cost no reading (presence and sizes), that of a shard by its own checksums, the comparisons with a
fingerprint and with a data set, and the removal of work that a finished store has taken over. Does not know how
features are made or read.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BusyError, CacheError
from pipeline.features.rows import index_size, is_whole, read_index
from pipeline.features.store import REMEDY, Manifest, expected_shards, read_manifest, read_shape
from pipeline.files import Workspace, dvc_object, lock, md5

SHARD = ".shard"
MEND = 'Run "freezeframe cache verify --repair".'  # not "dvc repro": DVC's own copy may be the same file by a link


@dataclass(frozen=True)
class Presence:
    """Which shards are there, by their file."""

    present: tuple[str, ...]
    missing: tuple[str, ...]
    truncated: tuple[str, ...]


def presence(path: Path, manifest: Manifest) -> Presence:
    """Look for each shard of the manifest and at its size."""
    present, missing, truncated = [], [], []
    for shard in manifest.shards:
        file = path / shard.file
        if not file.exists():
            missing.append(shard.file)
        elif file.stat().st_size != shard.bytes:
            truncated.append(shard.file)
        else:
            present.append(shard.file)
    return Presence(tuple(present), tuple(missing), tuple(truncated))


def check_store(path: Path) -> Manifest:
    """Refuse a store that is not whole; reads metadata only.

    Raises:
        MissingError: there is none.
        CacheError: no manifest, or a shard that is missing or of another size than written.
    """
    manifest = read_manifest(path)
    found = presence(path, manifest)
    (images, _, _), _, shard_images = read_shape(path)
    if len(manifest.shards) != expected_shards(images, shard_images):
        raise CacheError(
            f"{path} holds {images:,} images, which is {expected_shards(images, shard_images):,} shards, but its "
            f"manifest lists {len(manifest.shards):,}. {REMEDY}"
        )
    if found.missing:
        raise CacheError(f"{path} lacks {_shards(found.missing)} of {len(manifest.shards):,}. {REMEDY}")
    if found.truncated:
        record = next(shard for shard in manifest.shards if shard.file == found.truncated[0])
        size = (path / record.file).stat().st_size
        raise CacheError(
            f"{path} holds {_shards(found.truncated)} of another size than written: expected {record.bytes:,} bytes, "
            f"found {size:,}. {MEND}"
        )
    return manifest


def _shards(files: Sequence[str]) -> str:
    return f"{len(files):,} shard{'' if len(files) == 1 else 's'} (first: {files[0]})"


def whole_rows(path: Path, shard_images: int, count: int) -> list[bool]:
    """Whether each row of a shard's file is what was written, by its checksum; reads all, one row at a time.

    Args:
        path: of the file.
        shard_images: of the layout.
        count: rows the shard must hold.

    Raises:
        CacheError: the index, which says where the rows are, is damaged.
    """
    size = path.stat().st_size
    start = max(0, size - index_size(shard_images))
    with path.open("rb") as file:
        places = read_index(os.pread(file.fileno(), size - start, start), size, count)
        return [is_whole(os.pread(file.fileno(), length, offset)) for offset, length in places]


def shard_is_whole(path: Path, shard_images: int, count: int) -> bool:
    """Whether a shard's file is what was written, by its own checksums; see `whole_rows`."""
    try:
        return all(whole_rows(path, shard_images, count))
    except (CacheError, OSError):
        return False


def check_fingerprint(
    path: Path, found: str, fields: Mapping[str, Any], expected: str, expected_fields: Mapping[str, Any] | None
) -> None:
    """Refuse a cache that was made otherwise than expected.

    Raises:
        CacheError: names the fields that differ, if the expected ones are known.
    """
    if found == expected:
        return
    differing = differences(expected_fields, fields) if expected_fields else []
    told = "; ".join(differing) or f"expected {expected[:12]}, found {found[:12]}"
    raise CacheError(f'{path} was encoded otherwise: {told}. Run "dvc repro", so that both stages agree.')


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One phrase a field that differs: its name, what was expected, what was found."""
    keys = [*expected, *(key for key in found if key not in expected)]
    return [
        f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        for key in keys
        if expected.get(key) != found.get(key)
    ]


def check_ids(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a cache of other images, or of the same in another order.

    Raises:
        CacheError: has both counts and the first difference.
    """
    if list(found) == list(expected):
        return
    held, wanted = set(found), set(expected)
    first_missing = next((name for name in expected if name not in held), None)
    first_extra = next((name for name in found if name not in wanted), None)
    if first_missing is not None:
        first = f"first missing: {first_missing}"
    elif first_extra is not None:
        first = f"first that the data set does not list: {first_extra}"
    else:
        row = next(row for row, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
        first = f"row {row:,} is {found[row]} instead of {expected[row]}"
    raise CacheError(f"{path} holds {len(found):,} images but the data set lists {len(expected):,}; {first}. {REMEDY}")


def work_folder(workspace: Workspace, fingerprint: str) -> Path:
    """Where the shards of an unfinished cache lie."""
    return workspace.work("encode") / fingerprint


def work_file(workspace: Workspace, fingerprint: str, key: str) -> Path:
    """Where a finished shard of an unfinished cache lies."""
    return work_folder(workspace, fingerprint) / f"{key}{SHARD}"


def work_lock(workspace: Workspace) -> Path:
    """What the one writer holds."""
    return workspace.work("encode") / "lock"


def sweep(workspace: Workspace) -> int:
    """Delete the encode stage's working copies of what the finished store holds; returns how many.

    Only those that DVC's own cache has, from where encode takes them back: until it has, after `dvc repro --no-commit`
    or for a store that was encoded by hand, they are what a run goes on from when DVC has deleted the store. Work for
    other settings stays.

    Raises:
        MissingError, CacheError: the store is not whole, so nothing is deleted.
    """
    manifest = check_store(workspace.features)
    folder = work_folder(workspace, manifest.fingerprint)
    try:
        with lock(work_lock(workspace), work="encoding images"):
            held = {work_file(workspace, manifest.fingerprint, shard.key) for shard in manifest.shards}
            swept = _in_dvcs_cache(workspace.root, [path for path in held if path.exists()])
            for path in swept:
                path.unlink()
    except BusyError:  # someone encodes: theirs to keep
        return 0
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    return len(swept)


def _in_dvcs_cache(root: Path, files: Sequence[Path]) -> list[Path]:
    """Those whose content DVC's own cache has."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hash") as pool:
        hashes = pool.map(md5, files)
        return [file for file, name in zip(files, hashes, strict=True) if dvc_object(root, name)]
