"""The files in which people keep captions and references.

Owns their forms: what `freezeframe score` accepts, and what it calls wrong. Does not know how captions are scored.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets.readers import read_captions
from pipeline.datasets.records import normal
from pipeline.errors import DataError
from pipeline.files import read_json, read_text, require

_IDS = ("image_id", "image", "id")


@dataclass(frozen=True)
class References:
    """What a file knows of its images.

    Attributes:
        captions: the references of each image.
        splits: of the images that have one.
        partial: the file is of a whole data set, of which some images may be captioned.
    """

    captions: dict[str, list[str]]
    splits: dict[str, str]
    partial: bool


def read_said(path: Path) -> dict[str, str]:
    """Read one caption an image: our `captions.json`, a COCO result file, a JSON mapping, or JSON lines.

    Raises:
        MissingError: it is not there.
        DataError: it is of no such form, or an image stands twice.
    """
    document = _document(path)
    if isinstance(document, dict):
        pairs = [(normal(image), caption) for image, caption in document.items()]
    else:
        pairs = [(_id(entry, path), entry.get("caption")) for entry in document]
    for image, caption in pairs:
        if not isinstance(caption, str):
            raise DataError(f"{path}: the caption of {image} is {str(caption)[:60]!r}, where text was expected.")
    if not pairs:
        raise DataError(f"{path} holds no captions.")
    return _once(pairs, path)


def read_references(path: Path, captioned: Iterable[str]) -> References:
    """Read references: our `captions.json` or `dataset.jsonl`, a JSON mapping, or any file that ingest reads.

    Args:
        path: the file (COCO: or the folder of several).
        captioned: the ids of the captions; COCO's annotations know an image by number and by file name, and the one
            that these are is taken.

    Raises:
        MissingError: it is not there.
        DataError: it is of no such form, or an image stands twice.
    """
    document = _document(path) if require(path).is_file() and path.suffix in (".json", ".jsonl") else None
    if isinstance(document, list) and document and isinstance(document[0], dict):
        if "references" in document[0]:
            return References(_listed(document, "references", path), {}, partial=False)
        if "captions" in document[0]:
            splits = {_id(entry, path): entry["split"] for entry in document if "split" in entry}
            return References(_listed(document, "captions", path), splits, partial=True)
    if isinstance(document, dict) and "annotations" in document:
        numbered = _numbered(document["annotations"], path)
        if set(captioned) & numbered.keys():
            return References(numbered, {}, partial=True)
    elif isinstance(document, dict) and "images" not in document:
        pairs = [(normal(image), _texts(texts, image, path)) for image, texts in document.items()]
        return References(_once(pairs, path), {}, partial=False)
    _, records = read_captions(path, "auto")
    splits = {record.id: record.split for record in records if record.split is not None and record.captions}
    captions = {record.id: list(record.captions) for record in records if record.captions}
    return References(captions, splits, partial=True)


def _document(path: Path) -> Any:
    """JSON or JSON lines, as a list of objects or a mapping whose keys stand once."""
    if path.suffix == ".jsonl":
        return [_line(text, number, path) for number, text in enumerate(read_text(path).split("\n"), 1) if text.strip()]
    document = read_json(path)
    if not isinstance(document, dict | list):
        raise DataError(f"{path} holds neither a list nor a mapping of captions.")
    if isinstance(document, dict):
        _once(json.loads(read_text(path), object_pairs_hook=_Pairs), path)
    return document


class _Pairs(list[Any]):
    """The members of a JSON object, repeated keys and all."""


def _line(text: str, number: int, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON: {error.msg} at column {error.colno}.") from error


def _id(entry: Any, path: Path) -> str:
    keys = [key for key in _IDS if isinstance(entry, dict) and key in entry]
    if not keys:
        raise DataError(f"{path}: expected objects with {' or '.join(_IDS)}, found {str(entry)[:60]!r}.")
    return normal(str(entry[keys[0]]))


def _listed(entries: list[Any], key: str, path: Path) -> dict[str, list[str]]:
    return _once([(_id(entry, path), _texts(entry.get(key), _id(entry, path), path)) for entry in entries], path)


def _numbered(annotations: Any, path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for annotation in annotations if isinstance(annotations, list) else []:
        image = _id(annotation, path)
        captions.setdefault(image, []).extend(_texts([annotation.get("caption")], image, path))
    return captions


def _texts(texts: Any, image: str, path: Path) -> list[str]:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{path}: the references of {image} are {str(texts)[:60]!r}; expected a list of texts, one at least."
        )
    return texts


def _once(pairs: Iterable[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """The pairs as a mapping; an image that stands twice is an error."""
    pairs = list(pairs)
    twice = [image for image, count in Counter(image for image, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(
            f"{path} names {len(twice):,} images more than once: {', '.join(twice[:10])}. Leave one entry an image."
        )
    return dict(pairs)
