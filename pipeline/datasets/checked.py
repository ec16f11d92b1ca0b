"""Every image decoded once, so that no later stage meets a bad one.

Owns the parallel check and its memory: an image whose size and modification time are as before is not decoded
again. The memory is a shortcut that nothing depends on; damaged or absent, all images are decoded.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TextIO

import PIL
from tqdm import tqdm

from pipeline.errors import ImageError
from pipeline.files import write_text
from pipeline.vision.images import decode

# Raise it when `decode` accepts or refuses other images than before: what is remembered is then forgotten.
_CHECK_VERSION = 1


@dataclass(frozen=True)
class Checked:
    """What is known of an image file.

    Attributes:
        sha256: of its content; empty where it could not be read.
        reason: why it cannot be decoded, None if it can.
        complaints: what its decoder complained about (damaged metadata).
    """

    sha256: str
    reason: str | None
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class _Remembered:
    stamp: str  # size, modification time, and the versions of all that decides
    checked: Checked


def check_images(folder: Path, files: list[str], workers: int, memory: Path) -> tuple[dict[str, Checked], int]:
    """Decode all files in full, except those that have not changed since they last were.

    Args:
        folder: the images folder.
        files: paths inside it.
        workers: threads; 0 is one a core.
        memory: the file that remembers.

    Returns:
        What is known by file, in the order of `files`, and how many files were decoded now.
    """
    remembered = _recall(memory)
    known = {file: found for file in files if (found := _unchanged(remembered, folder / file)) is not None}
    due = [file for file in files if file not in known]
    _write_memory(memory, remembered)
    with memory.open("a", encoding="utf-8") as record:
        known.update(zip(due, _decoded(folder, due, workers, record), strict=True))
    return {file: known[file] for file in files}, len(due)


def _decoded(folder: Path, files: list[str], workers: int, record: TextIO) -> Iterator[Checked]:
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        paths = [folder / file for file in files]
        results = pool.map(_check, paths)
        for path, found in zip(
            paths, tqdm(results, "checking", len(paths), unit=" images", disable=not paths), strict=True
        ):
            record.write(_line(path, found))
            yield found.checked
    finally:
        pool.shutdown(cancel_futures=True)


def _check(path: Path) -> _Remembered:
    stamp = _stamp(path)  # before the reading: a file that changes meanwhile is read again next time
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Remembered("", Checked("", f"it cannot be read ({error.strerror})", ()))
    try:
        complaints, reason = decode(content).complaints, None
    except ImageError as error:
        complaints, reason = (), str(error)
    return _Remembered(stamp, Checked(sha256(content).hexdigest(), reason, complaints))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {PIL.__version__} {_CHECK_VERSION}"


def _unchanged(remembered: dict[str, _Remembered], path: Path) -> Checked | None:
    found = remembered.get(str(path))
    return found.checked if found and found.stamp and found.stamp == _stamp(path) else None


def _line(path: Path | str, found: _Remembered) -> str:
    return json.dumps({"path": str(path), "stamp": found.stamp, **asdict(found.checked)}) + "\n"


def _recall(memory: Path) -> dict[str, _Remembered]:
    """What earlier runs wrote, even a killed one; a line that cannot be read is forgotten."""
    remembered: dict[str, _Remembered] = {}
    if not memory.is_file():
        return remembered
    for line in memory.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            checked = Checked(entry["sha256"], entry["reason"], tuple(entry["complaints"]))
            remembered[entry["path"]] = _Remembered(entry["stamp"], checked)
        except (ValueError, TypeError, KeyError):
            continue
    return remembered


def _write_memory(memory: Path, remembered: dict[str, _Remembered]) -> None:
    """Leave one line a file (runs append to it), and no torn last line."""
    write_text(memory, "".join(_line(path, found) for path, found in remembered.items()))
