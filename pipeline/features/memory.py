"""Whether features once read stay in memory.

Owns `train.cache`: how much memory there is for them, and the choice of `auto`. Whatever is chosen, the same features
come: it is no setting that changes a result.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.features.reader import FeatureReader

CacheMode = Literal["auto", "memory", "stream"]
SHARE = 0.5  # of the available memory, which the features may fill at most
_ROOT = Path("/")


def keep(reader: FeatureReader, rows: Sequence[int], mode: CacheMode, processes: int = 1, root: Path = _ROOT) -> bool:
    """Let rows stay in memory once read, as they are stored (compressed, if the cache is).

    Args:
        reader: of the cache.
        rows: all that will be read again and again.
        mode: memory, stream, or auto: memory if they fit into half of what is available.
        processes: that do so at the same time.
        root: of the file system that tells.

    Returns:
        Whether they stay.
    """
    fits = processes * reader.stored_bytes(rows) <= SHARE * available_memory(root)
    staying = mode == "memory" or (mode == "auto" and fits)
    if staying:
        reader.keep(rows)
    return staying


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process could use without swapping: the machine's, or its control group's if that is less.

    Args:
        root: of the file system that tells; 0 where /proc/meminfo does not.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return 0
    machine = _figures(meminfo).get("MemAvailable:", 0) * 1024
    return max(0, min([machine, *_groups(root)]))


def _groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves (version 2; version 1 keeps memory in a tree of its own)."""
    membership = root / "proc/self/cgroup"
    lines = membership.read_text(encoding="ascii").splitlines() if membership.exists() else []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds == "":
            yield from _left(root / "sys/fs/cgroup", place, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", place, *names)


def _left(tree: Path, place: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Limit less usage of a group and of all above it; pages of files, which can be dropped, are no usage."""
    group = tree / place.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(tree) and (folder / limit).exists():
            text = (folder / limit).read_text(encoding="ascii").strip()
            if text != "max":
                files = _figures(folder / "memory.stat").get(cached, 0)
                yield int(text) - int((folder / usage).read_text(encoding="ascii")) + files


def _figures(path: Path) -> dict[str, int]:
    """`NAME FIGURE` lines, as /proc/meminfo and memory.stat have them."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
