"""What every source format is read into.

Owns `Record`, the gathering of captions by image, the names of splits, and the captions file as the readers see it.
Does not know any format, and looks at no image file.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.datasets.dataset import Split
from pipeline.errors import DataError
from pipeline.files import read_json, read_text

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "restval": "train",  # Karpathy's rest of COCO's validation images, which everyone trains on
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Record:
    """One image as its source describes it.

    Attributes:
        id: its name in the source (`normal`).
        files: where it may lie inside the images folder, best guess first.
        captions: as written.
        split: None where the source does not say.
    """

    id: str
    files: tuple[str, ...]
    captions: tuple[str, ...]
    split: Split | None


class CaptionsFile:
    """The captions file (or the folder of several), read once however many readers look at it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def text(self) -> str:
        """Its text, without a byte order mark; a line ends in a line feed, whatever it ended in."""
        return read_text(self.path).replace("\r\n", "\n").replace("\r", "\n")

    @cached_property
    def document(self) -> Any:
        """Its content as JSON."""
        return read_json(self.path)

    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines that are not blank, each after its place, such as `captions.txt, line 3`."""
        for number, line in enumerate(self.text.split("\n"), start=1):
            if line.strip():
                yield f"{self.path}, line {number}", line

    def why_not_json(self) -> str | None:
        """Why it is not one JSON document, None if it is."""
        if self.path.is_dir():
            return "it is a folder"
        if not self.text.lstrip().startswith(("{", "[")):
            return "it is not JSON"
        try:
            _ = self.document
        except DataError as error:
            return str(error).removeprefix(f"{self.path} ").partition(". ")[0]
        return None


@dataclass
class _Entry:
    files: tuple[str, ...]
    split: Split | None
    captions: list[str]


@dataclass
class Gathering:
    """Captions by image, in the order in which the images first appear."""

    entries: dict[str, _Entry] = field(default_factory=dict)

    def add(self, name: str, captions: list[str], split: Split | None, place: str, file: str | None = None) -> None:
        """Add captions of the image `name`, whose file is called `name` too unless `file` says otherwise.

        Raises:
            DataError: the image was met before with another file or in another split.
        """
        key, files = normal(name), (file or name,)
        entry = self.entries.setdefault(key, _Entry(files, split, []))
        if normal(entry.files[0]) != normal(files[0]):
            raise DataError(f"{place}: the id {name} stands for {files[0]}, and before for {entry.files[0]}.")
        if entry.split != split:
            raise DataError(
                f"{place}: {name} is in split {split or '(none)'}, and before in {entry.split or '(none)'}."
            )
        entry.captions += captions

    def records(self) -> tuple[Record, ...]:
        """One record an image."""
        return tuple(Record(name, e.files, tuple(e.captions), e.split) for name, e in self.entries.items())


def normal(name: str) -> str:
    """One form of all the names of a file: composed accents (NFC), and a plain path (`tidy`)."""
    return unicodedata.normalize("NFC", tidy(name))


def tidy(name: str) -> str:
    """A path without `.` parts and doubled slashes; an id that is an address (`http://...`) stays as it is."""
    return str(PurePosixPath(name)) if name and "://" not in name else name


def split_named(word: str, place: str) -> Split:
    """The split that a source calls `word`.

    Raises:
        DataError: it is no split's name; the message lists those that are.
    """
    try:
        return _SPLIT_NAMES[word.strip().lower()]
    except KeyError as error:
        raise DataError(f"{place}: {word!r} is not a split; expected one of {', '.join(_SPLIT_NAMES)}.") from error


def text_at(value: Any, key: str, place: str) -> str:
    """The text under `key` of a JSON object.

    Raises:
        DataError: `value` is no object, lacks the key, or holds something else there.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, found {_brief(value)}.")
    if key not in value:
        raise DataError(f'{place}: expected the key "{key}", found {", ".join(map(str, value)) or "none"}.')
    return as_text(value[key], f'{place}, "{key}"')


def list_at(value: Any, key: str, place: str) -> list[Any]:
    """The list under `key` of a JSON object, with the same errors."""
    found = value.get(key) if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise DataError(f'{place}: expected a list under "{key}", found {_brief(found)}.')
    return found


def as_text(value: Any, place: str) -> str:
    """`value` if it is text that can be written as UTF-8.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        raise DataError(f"{place}: expected text, found {_brief(value)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{place}: {_brief(value)} holds half of a surrogate pair, which is no character.")
    return value


def _brief(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
