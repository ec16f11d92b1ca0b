"""What `freezeframe cache` tells about the feature cache.

Owns the collecting and the wording. Does not know how the cache is made or read.
"""

import time
from pathlib import Path
from typing import Any

from pipeline.errors import MissingError
from pipeline.features.integrity import SHARD, presence
from pipeline.features.store import read_attributes, read_layout, read_manifest, read_shape
from pipeline.files import Workspace


def cache_info(workspace: Workspace) -> dict[str, Any]:
    """Describe the finished cache and the work that is kept beside it.

    Whether that is of the present settings only their network could tell: its weights are in the fingerprint.

    Returns:
        `complete` (None where there is no cache, else a mapping with path, shape, grid, dtype, codec, bytes, ratio to
        raw, fingerprint, fields, and shards present, missing and truncated) and `in_progress`, one mapping a
        fingerprint with its finished shards, their bytes and when it was last worked at, the latest first.

    Raises:
        MissingError: neither is there.
        CacheError: the cache has no manifest, or damaged metadata.
    """
    in_progress = _in_progress(workspace.work("encode"))
    if not workspace.features.exists() and not in_progress:
        raise MissingError(f'{workspace.features} does not exist and nothing is in work. Run "dvc repro encode".')
    return {
        "complete": _complete(workspace.features) if workspace.features.exists() else None,
        "in_progress": in_progress,
    }


def _complete(path: Path) -> dict[str, Any]:
    manifest, said = read_manifest(path), read_attributes(path)
    (images, cells, channels), layout = read_shape(path)[0], read_layout(path)
    found = presence(path, manifest)
    size = sum(shard.bytes for shard in manifest.shards)
    return {
        "path": str(path),
        "shape": [images, cells, channels],
        "grid": said["grid"],
        "dtype": layout.dtype,
        "codec": layout.codec,
        "shard_images": layout.shard_images,
        "bytes": size,
        "ratio": round(size / (images * layout.image_bytes), 4),
        "fingerprint": said["fingerprint"],
        "fields": said["fields"],
        "shards": {
            "present": len(found.present),
            "missing": list(found.missing),
            "truncated": list(found.truncated),
        },
    }


def _in_progress(folder: Path) -> list[dict[str, Any]]:
    described = []
    for place in (path for path in folder.glob("*") if path.is_dir()):
        sizes = [path.stat().st_size for path in place.glob(f"*{SHARD}")]
        if sizes:
            last = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(place.stat().st_mtime))
            described.append({"fingerprint": place.name, "shards": len(sizes), "bytes": sum(sizes), "last": last})
    return sorted(described, key=lambda work: (work["last"], work["fingerprint"]), reverse=True)


def cache_text(info: dict[str, Any]) -> str:
    """The same for people."""
    complete = info["complete"]
    lines = _complete_lines(complete) if complete else ["There is no finished cache."]
    for work in info["in_progress"]:
        lines.append(
            f"kept work    {work['fingerprint'][:12]}: {work['shards']:,} shards, {work['bytes'] / 1e6:,.1f} MB, last "
            f"worked at {work['last'].replace('T', ' ')} ({_kept_for(work, complete)})"
        )
    return "\n".join(lines)


def _kept_for(work: dict[str, Any], complete: dict[str, Any] | None) -> str:
    if _same(work, complete):
        return "the cache above, until a later stage starts"
    return "unfinished, or of other settings than the present ones"


def _same(work: dict[str, Any], complete: dict[str, Any] | None) -> bool:
    return complete is not None and work["fingerprint"] == complete["fingerprint"]


def _complete_lines(complete: dict[str, Any]) -> list[str]:
    images, cells, channels = complete["shape"]
    shards, grid, dtype = complete["shards"], complete["grid"], complete["dtype"]
    place = f"{grid[0]} x {grid[1]}" if grid else "boxes"
    lines = [
        f"{complete['path']}",
        f"shape        {images:,} images x {cells} regions ({place}) x {channels:,} channels, {dtype}",
        f"on disk      {complete['bytes'] / 1e6:,.1f} MB, {complete['ratio']:.3f} of raw {dtype} (codec "
        f"{complete['codec']})",
        f"fingerprint  {complete['fingerprint']}",
        *(f"  {key}: {value}" for key, value in complete["fields"].items()),
        f"shards       {shards['present']:,} present, {len(shards['missing']):,} missing, "
        f"{len(shards['truncated']):,} of another size ({complete['shard_images']} images each)",
    ]
    return lines + [f"  {word}: {file}" for word in ("missing", "truncated") for file in shards[word]]
