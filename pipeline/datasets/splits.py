"""Which image trains, which validates, which tests.

Owns split lists, and the rule for images that nobody has split: a hash of seed and id, so that an added image never
moves another.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.datasets import karpathy
from pipeline.datasets.dataset import SPLITS, Split
from pipeline.datasets.records import CaptionsFile, Record, normal, split_named
from pipeline.errors import DataError
from pipeline.files import require

# Flickr_8k.trainImages.txt, train.txt, flickr30k_val.txt, test_images.txt, dev-list.txt
_LIST = re.compile(r"(?:.*[^a-z])?(train|valid|validation|val|dev|test)(?:[^a-z]?(?:images?|list|ids))?")


class SplitLists:
    """Listed names and their splits; a name counts with or without its folder and its suffix."""

    def __init__(self, path: Path) -> None:
        """Read the lists.

        Args:
            path: a folder of lists (train.txt, *devImages.txt, ...), a table `image,split`, or Karpathy's JSON.

        Raises:
            MissingError: nothing is there.
            DataError: there are no lists, or a name is in two splits.
        """
        self.path = path
        self.splits: dict[str, Split] = {}
        for name, split in _listed(require(path)):
            if self.splits.setdefault(name, split) != split:
                raise DataError(f"{path}: {name} is listed in {self.splits[name]} and in {split}; choose one.")

    def entry(self, *names: str) -> str | None:
        """The listed name that means an image with these names, None where it is not listed."""
        forms = (form for name in names for form in _forms(name))
        return next((form for form in forms if form in self.splits), None)

    def apply(self, records: Iterable[Record]) -> tuple[tuple[Record, ...], int, tuple[str, ...]]:
        """The listed records with their splits.

        Returns:
            The records, how many were left out because no list has them, and the listed names that no record has.
        """
        kept, used, unlisted = [], set(), 0
        for record in records:
            entry = self.entry(record.id, *map(normal, record.files))
            if entry is None:
                unlisted += 1
                continue
            used.add(entry)
            kept.append(Record(record.id, record.files, record.captions, self.splits[entry]))
        return tuple(kept), unlisted, tuple(name for name in self.splits if name not in used)


def _forms(name: str) -> Iterator[str]:
    """A name with and without its folder and its suffix."""
    folder, slash, base = name.rpartition("/")
    stem = base.rpartition(".")[0]
    yield from (name, f"{folder}{slash}{stem}", base, stem)


def deal(records: tuple[Record, ...], seed: int, source: Path) -> tuple[Record, ...]:
    """Give a split to each record: its own, or where the source has none, 80/10/10 by hash.

    Raises:
        DataError: some records have a split and others have none.
    """
    without = [record.id for record in records if record.split is None]
    if not without:
        return records
    if len(without) < len(records):
        raise DataError(
            f"{source} gives a split to some images and none to {len(without)} others, first "
            f"{', '.join(without[:10])}. Give one to every image, or to none (then they are dealt 80/10/10)."
        )
    return tuple(Record(record.id, record.files, record.captions, dealt(record.id, seed)) for record in records)


def dealt(id: str, seed: int) -> Split:  # noqa: A002 - it is the record's id
    """The split of one image: 80 % train, 10 % validation, 10 % test."""
    place = fraction(id, seed)
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


def fraction(id: str, seed: int) -> float:  # noqa: A002
    """A number in [0, 1) that depends on the id and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest()[:6]) / 2**48


def require_every_split(splits: Iterable[Split]) -> Counter[Split]:
    """Count the images of each split.

    Raises:
        DataError: one has none; the message says which and what to do.
    """
    counts = Counter(splits)
    if empty := [split for split in SPLITS if not counts[split]]:
        found = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        raise DataError(
            f"No image is in {' and '.join(empty)}, found: {found}. Every split needs at least one: add images, give "
            "the splits yourself (data.splits), or, where they are dealt by hash, try another data.seed."
        )
    return counts


def _listed(path: Path) -> Iterator[tuple[str, Split]]:
    if path.is_dir():
        return _from_folder(path)
    file = CaptionsFile(path)
    return _from_karpathy(file) if karpathy.mismatch(file) is None else _from_table(file)


def _from_folder(folder: Path) -> Iterator[tuple[str, Split]]:
    lists = [(path, match[1]) for path in sorted(folder.glob("*.txt")) if (match := _LIST.fullmatch(path.stem.lower()))]
    if not lists:
        raise DataError(
            f"{folder} has no split lists; expected files such as train.txt, val.txt and test.txt, or "
            "Flickr_8k.trainImages.txt and its like. To use the captions' own splits, or to have images dealt "
            "80/10/10, let data.splits name the captions file."
        )
    for path, word in lists:
        for _, line in CaptionsFile(path).lines():
            yield normal(line.strip()), split_named(word, str(path))


def _from_karpathy(file: CaptionsFile) -> Iterator[tuple[str, Split]]:
    return ((record.id, record.split) for record in karpathy.read(file) if record.split is not None)


def _from_table(file: CaptionsFile) -> Iterator[tuple[str, Split]]:
    rows = csv.DictReader(io.StringIO(file.text, newline=""))
    try:
        yield from _rows(file, rows)
    except csv.Error as error:
        raise DataError(f"{file.path}, line {rows.reader.line_num}: no row of a table ({error}).") from error


def _rows(file: CaptionsFile, rows: "csv.DictReader[str]") -> Iterator[tuple[str, Split]]:
    columns = rows.fieldnames or ()
    if not {"image", "split"} <= set(columns):
        raise DataError(
            f"{file.path}: expected the columns image and split, found {', '.join(columns)[:80] or 'none'}. "
            "Splits are a folder of lists, such a table, Karpathy's JSON, or the captions file itself."
        )
    for row in rows:
        yield (
            normal((row["image"] or "").strip()),
            split_named(row["split"] or "", f"{file.path}, line {rows.line_num}"),
        )
