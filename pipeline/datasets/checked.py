"""Every image decoded once, so that no later stage meets a bad one.

Owns the parallel check and its memory: every image is read, for its hash is the data set's, but content that has been
decoded before is not decoded again. The memory is a shortcut that nothing depends on; damaged or absent, all images
are decoded.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TextIO

import PIL
from tqdm import tqdm

from pipeline.errors import ImageError
from pipeline.files import write_text
from pipeline.vision.images import decode

# Raise the number when `decode` accepts or refuses other images than before: what is remembered is then forgotten.
_DECODER = f"{PIL.__version__} 2"


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


def check_images(folder: Path, files: list[str], workers: int, memory: Path) -> tuple[dict[str, Checked], int]:
    """Read all files, and decode in full those whose content never has been.

    Args:
        folder: the images folder.
        files: paths inside it.
        workers: threads; 0 is one a core.
        memory: the file that remembers.

    Returns:
        What is known by file, in the order of `files`, and how many files were decoded now.
    """
    remembered = _recall(memory)
    _write_memory(memory, remembered)
    with memory.open("a", encoding="utf-8") as record:
        known = dict(zip(files, _checked(folder, files, workers, remembered, record), strict=True))
    return known, sum(found.sha256 not in remembered for found in known.values())


def _checked(
    folder: Path, files: list[str], workers: int, remembered: dict[str, Checked], record: TextIO
) -> Iterator[Checked]:
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        results = pool.map(partial(_check, remembered), [folder / file for file in files])
        for found in tqdm(results, "checking", len(files), unit=" images", disable=not files):
            if found.sha256 and found.sha256 not in remembered:
                record.write(_line(found))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


def _check(remembered: dict[str, Checked], path: Path) -> Checked:
    try:
        content = path.read_bytes()
    except OSError as error:
        return Checked("", f"it cannot be read ({error.strerror})", ())
    digest = sha256(content).hexdigest()
    if digest in remembered:
        return remembered[digest]
    try:
        return Checked(digest, None, decode(content).complaints)
    except ImageError as error:
        return Checked(digest, str(error), ())


def _line(found: Checked) -> str:
    return json.dumps({"decoder": _DECODER, **asdict(found)}) + "\n"


def _recall(memory: Path) -> dict[str, Checked]:
    """What earlier runs wrote, even a killed one, by SHA-256; a line that cannot be read is forgotten."""
    remembered: dict[str, Checked] = {}
    if not memory.is_file():
        return remembered
    for line in memory.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
            if entry["decoder"] == _DECODER:
                remembered[entry["sha256"]] = Checked(entry["sha256"], entry["reason"], tuple(entry["complaints"]))
        except (ValueError, TypeError, KeyError):
            continue
    return remembered


def _write_memory(memory: Path, remembered: dict[str, Checked]) -> None:
    """Leave one line a content (runs append to it), and no torn last line."""
    write_text(memory, "".join(map(_line, remembered.values())))
