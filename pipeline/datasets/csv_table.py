"""Tables of `image,caption` (Kaggle's Flickr8k) with an optional `split`, and Flickr30k's `results.csv`.

Owns these two formats. The second is no real CSV: `image_name| comment_number| comment`, never quoted, with one
line whose second bar is missing.
"""

import csv
import io
import re

from pipeline.datasets.records import CaptionsFile, Gathering, Record, split_named
from pipeline.errors import DataError
from pipeline.vision.images import SUFFIXES

_BARRED_HEADER = ["image_name", "comment_number", "comment"]
_BARRED_LINE = re.compile(r"(?P<name>[^|]+)\|\s*\d+\s*\|?\s*(?P<caption>.*)")


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not such a table, None if it is: its header decides."""
    if captions.path.is_dir():
        return "it is a folder"
    header = next((line for _, line in captions.lines()), "")
    if _is_barred(header):
        return None
    try:
        columns = _columns(header)
    except csv.Error as error:
        return f"its first line is no row of a table ({error})"
    missing = [name for name in ("image", "caption") if name not in columns]
    twice = [name for name in ("image", "caption", "split") if columns.count(name) > 1]
    if twice:
        return f"its first line has the column {twice[0]} more than once"
    if not missing:
        return None
    found = f"expected the columns image and caption, its first line has {', '.join(columns)[:80] or 'none'}"
    return found + _hint(header)


def _hint(header: str) -> str:
    """What is the matter with a first line that nearly fits."""
    for mark, called in ((";", '";"'), ("\t", "tabs")):
        if {"image", "caption"} <= {column.strip(' "').lower() for column in header.split(mark)}:
            return f"; its columns are separated by {called}: save it with commas"
    first = re.split(r"[,;\t]", header)[0].strip(' "').lower()
    return "; the first line must name the columns" if first.endswith(SUFFIXES) else ""


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image.

    Raises:
        DataError: the header or a row does not fit; the message has the line.
    """
    if reason := mismatch(captions):
        raise DataError(f"{captions.path}: {reason}.")
    header = next(line for _, line in captions.lines())
    return _read_barred(captions) if _is_barred(header) else _read_table(captions)


def _is_barred(header: str) -> bool:
    return [column.strip() for column in header.split("|")] == _BARRED_HEADER


def _columns(header: str) -> list[str]:
    return [column.strip().lower() for column in next(csv.reader([header]), [])]


def _read_barred(captions: CaptionsFile) -> tuple[Record, ...]:
    gathering = Gathering()
    for place, line in list(captions.lines())[1:]:
        match = _BARRED_LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{place}: expected NAME| NUMBER| CAPTION, found {line[:60]!r}.")
        gathering.add(match["name"].strip(), [match["caption"]], None, place)
    return gathering.records()


def _read_table(captions: CaptionsFile) -> tuple[Record, ...]:
    rows = csv.reader(io.StringIO(captions.text, newline=""), strict=True)
    gathering, columns = Gathering(), list[str]()
    try:
        for row in rows:
            place = f"{captions.path}, line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = [column.strip().lower() for column in row]
                continue
            _add_row(gathering, columns, row, place)
    except csv.Error as error:
        raise DataError(f"{captions.path}, line {rows.line_num}: {error}; quotes inside quotes are doubled.") from error
    return gathering.records()


def _add_row(gathering: Gathering, columns: list[str], row: list[str], place: str) -> None:
    if len(row) != len(columns):
        raise DataError(
            f"{place}: {len(row)} cells under {len(columns)} columns ({', '.join(columns)}). "
            "A caption with a comma stands in double quotes."
        )
    cells = dict(zip(columns, row, strict=True))
    split = cells.get("split", "").strip()
    name = cells["image"].strip()
    if not name:
        raise DataError(f"{place}: the column image is empty.")
    gathering.add(name, [cells["caption"]], split_named(split, place) if split else None, place)
