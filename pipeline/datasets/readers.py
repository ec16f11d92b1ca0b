"""Recognise a source, open it, and find its images.

Owns the list of formats, the search for image files, and what does not fit together: captions without an image,
images without a caption, names that lead out of the folder. Decodes nothing.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.datasets import coco, csv_table, flickr, hdf5, jsonl, karpathy
from pipeline.datasets.dataset import DataSettings, Split
from pipeline.datasets.records import CaptionsFile, Record, normal, tidy
from pipeline.datasets.splits import SplitLists, deal, require_every_split
from pipeline.errors import DataError
from pipeline.files import require
from pipeline.vision.images import SUFFIXES

NO_FILE = "no image file"
NO_CAPTION = "no caption"
ONLY_LISTED = "listed in data.splits, but absent from the captions"
OUTSIDE = "its name leads out of the images folder"
_TITLES = {
    NO_FILE: "captions without an image file",
    NO_CAPTION: "images without a caption",
    ONLY_LISTED: f"names {ONLY_LISTED}",
    OUTSIDE: "names that lead out of the images folder",
}


class Reader(Protocol):
    """What a format's module offers."""

    def mismatch(self, captions: CaptionsFile) -> str | None:
        """Why the file is not of this format, None if it is."""
        ...

    def read(self, captions: CaptionsFile) -> tuple[Record, ...]:
        """One record an image, in the order of first appearance."""
        ...


READERS: dict[str, Reader] = {
    "flickr": flickr,
    "karpathy": karpathy,
    "coco": coco,
    "csv": csv_table,
    "jsonl": jsonl,
    "hdf5": hdf5,
}
_OF_SUFFIX = {".csv": ("csv",), ".tsv": ("csv",), ".jsonl": ("jsonl",), ".json": ("karpathy", "coco")}


@dataclass(frozen=True)
class Found:
    """One image that has a file, captions and a split."""

    id: str
    file: str
    split: Split
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A source, opened.

    Attributes:
        format: as in the settings, never `auto`.
        images: in the order of their first appearance in the source, so that what is appended there touches only
            the end of everything that follows.
        skipped: names and reasons of what was left out by `on_missing: skip`.
        unlisted: how many images no split list has.
        empty_captions: how many captions held nothing.
    """

    format: str
    images: tuple[Found, ...]
    skipped: tuple[tuple[str, str], ...]
    unlisted: int
    empty_captions: int


def open_source(settings: DataSettings, root: Path) -> Source:
    """Read captions and splits, and find each image's file.

    Args:
        settings: the section `data`, for any format whose images are files.
        root: what relative paths start from.

    Raises:
        MissingError: the folder or a file is not there.
        DataError: something does not fit; the message says what, where, and what to do.
    """
    folder = ImagesFolder(root / settings.images)
    captions, splits = root / settings.captions, root / settings.splits
    name, records = read_captions(captions, settings.format)
    mentioned, unlisted, absent = {normal(file) for record in records for file in record.files}, 0, tuple[str, ...]()
    if splits.resolve() != captions.resolve():
        records, unlisted, absent = SplitLists(splits).apply(records)
    records = deal(records, settings.seed, captions)
    images, problems = _matched(records, folder)
    problems += [(name, ONLY_LISTED) for name in absent]
    others = [file for file in folder.neighbours(images) if normal(file) not in mentioned]
    # No caption has named these: bytes that are no UTF-8 are told as escapes.
    problems += [(os.fsencode(file).decode("utf-8", "backslashreplace"), NO_CAPTION) for file in others]
    if problems and settings.on_missing == "stop":
        raise DataError(_told(problems, captions, folder, bool(images)))
    require_every_split(image.split for image in images)
    empty = sum(not caption.strip() for record in records for caption in record.captions)
    return Source(name, tuple(images), tuple(problems), unlisted, empty)


def read_captions(path: Path, format: str) -> tuple[str, tuple[Record, ...]]:  # noqa: A002 - the setting's name
    """Read a captions file of a given format, or of the first that fits (`auto`).

    Raises:
        DataError: it is of no known format, or not of the given one, or holds no captions.
    """
    captions = CaptionsFile(require(path))
    name = _recognised(captions, format)
    return name, _some(READERS[name].read(captions), path)


def holds_images(path: Path, format: str) -> bool:  # noqa: A002
    """Whether what `data.captions` names holds the images too, and no folder of files has them (`hdf5`).

    Raises:
        DataError: it is a folder of no known format, or not of the given one.
    """
    if format == "hdf5" or (format == "auto" and path.is_dir()):
        return _recognised(CaptionsFile(require(path)), format) == "hdf5"
    return False


def _recognised(captions: CaptionsFile, format: str) -> str:  # noqa: A002
    path, reasons = captions.path, {}
    for name in READERS if format == "auto" else [format]:
        reason = READERS[name].mismatch(captions)
        if reason is None:
            return name
        reasons[name] = reason
    if not path.is_dir() and not captions.text.strip():
        raise DataError(f"{path} is empty: no captions. Name a file that holds some (data.captions).")
    meant = _OF_SUFFIX.get(path.suffix.lower(), ())
    told = "".join(f"\n  {name}: {reasons[name]}" for name in sorted(reasons, key=lambda name: name not in meant))
    kind = "of no known format" if format == "auto" else f"not of the format {format}"
    raise DataError(f"{path} is {kind}:{told}\nName another file (data.captions) or another data.format.")


class _Listing(NamedTuple):
    """What lies in a folder, by the composed form of its name (`normal`)."""

    files: dict[str, str]
    folders: dict[str, str]


class ImagesFolder:
    """The user's folder of images, whose sub-folders are listed once."""

    def __init__(self, path: Path) -> None:
        """Look into the folder.

        Raises:
            MissingError: it is not there.
            DataError: it is a file, or has no image in it or below.
        """
        self.path = path
        if not require(path).is_dir():
            raise DataError(f"{path} is a file where the folder of images was expected (data.images).")
        self._listings: dict[str, _Listing] = {}
        if not any(_is_image(name) for _, _, names in os.walk(path, followlinks=True) for name in names):
            raise DataError(f"{path} holds no images ({' '.join(SUFFIXES)}). Name the folder that does (data.images).")

    def find(self, file: str) -> str | None:
        """The path inside the folder of the file that `file` means, whatever its Unicode form; None if absent."""
        *folders, name = tidy(file).split("/")
        parent = ""
        for folder in folders:
            actual = self._listing(parent).folders.get(normal(folder))
            if actual is None:
                return None
            parent = f"{parent}/{actual}".lstrip("/")
        found = self._listing(parent).files.get(normal(name))
        return None if found is None else f"{parent}/{found}".lstrip("/")

    def neighbours(self, images: Iterable[Found]) -> list[str]:
        """All other image files of the sub-folders in which these images lie, sorted."""
        used = {image.file for image in images}
        parents = sorted({file.rpartition("/")[0] for file in used})
        files = (f"{parent}/{name}".lstrip("/") for parent in parents for name in self._listing(parent).files.values())
        return sorted(file for file in files if file not in used and _is_image(file))

    def _listing(self, parent: str) -> _Listing:
        if parent not in self._listings:
            folder = self.path / parent
            entries = list(os.scandir(folder)) if folder.is_dir() else []
            self._listings[parent] = _Listing(
                {normal(entry.name): entry.name for entry in entries if entry.is_file()},
                {normal(entry.name): entry.name for entry in entries if entry.is_dir()},
            )
        return self._listings[parent]


def _is_image(file: str) -> bool:
    name = file.rpartition("/")[2]
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _leads_out(file: str) -> bool:
    return file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file) or re.match(r"[A-Za-z]:", file) is not None


def _matched(records: Iterable[Record], folder: ImagesFolder) -> tuple[list[Found], list[tuple[str, str]]]:
    images: list[Found] = []
    problems: list[tuple[str, str]] = []
    for record in records:
        captions = tuple(stripped for caption in record.captions if (stripped := caption.strip()))
        if any(map(_leads_out, record.files)):
            problems.append((re.split(r"[/\\]", record.files[0])[-1], OUTSIDE))
        elif not captions:
            problems.append((record.id, NO_CAPTION))
        elif (file := next(filter(None, map(folder.find, record.files)), None)) is None:
            problems.append((record.id, NO_FILE))
        else:
            assert record.split is not None
            images.append(Found(record.id, file, record.split, captions))
    return images, problems


def _some(records: tuple[Record, ...], path: Path) -> tuple[Record, ...]:
    if not any(caption.strip() for record in records for caption in record.captions):
        raise DataError(f"{path} holds no captions. Name a file that holds some (data.captions).")
    return records


def _told(problems: list[tuple[str, str]], captions: Path, folder: ImagesFolder, some_fit: bool) -> str:
    parts = []
    for reason, title in _TITLES.items():
        names = [name for name, why in problems if why == reason]
        if names:
            more = ", ..." if len(names) > 10 else ""
            hint = _hint(names[:10], folder) if reason == NO_FILE else ""
            parts.append(f"\n  {len(names)} {title}: {', '.join(names[:10])}{more}{hint}")
    skip = ", or leave these out with data.on_missing: skip" if some_fit else ""
    return (
        f"{captions} and {folder.path} do not fit together:{''.join(parts)}\n"
        f"Mend the names or add what is missing{skip}."
    )


def _hint(names: list[str], folder: ImagesFolder) -> str:
    """The suffix with which the folder has one of these names, if any."""
    suffixes = [*SUFFIXES, *map(str.upper, SUFFIXES)]
    lost = next((suffix for name in names for suffix in suffixes if folder.find(f"{name}{suffix}")), None)
    return f" (they lack the files' suffix, such as {lost})" if lost else ""
