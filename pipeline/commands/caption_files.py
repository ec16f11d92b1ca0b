"""The files in which people keep captions and references.

Owns their forms: what `freezeframe score` accepts, and what it calls wrong. Does not know how captions are scored.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.datasets import csv_table
from pipeline.datasets.jsonl import parsed
from pipeline.datasets.readers import read_captions
from pipeline.datasets.records import CaptionsFile, Record, normal, split_named
from pipeline.errors import DataError
from pipeline.files import read_json, read_text, require

_IDS = ("image_id", "image", "id")
_JSON = (".json", ".jsonl")
_COCO = "captions_*.json"  # in a folder of COCO's annotations


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
    """Read one caption an image: our `captions.json`, a COCO result file, a JSON mapping, JSON lines, or a table.

    Raises:
        MissingError: it is not there.
        DataError: it is of no such form, or an image stands twice.
    """
    document = _document(path) if path.suffix in _JSON else _table_or_json(path)
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
    document = _document(path) if require(path).is_file() and path.suffix in _JSON else None
    if isinstance(document, list) and document and isinstance(first := document[0], dict):
        if "references" in first:
            return References(_listed(document, "references", path), {}, partial=False)
        if "captions" in first and "image" not in first:  # such as dataset.jsonl; those with `image` ingest reads
            captions = _listed(document, "captions", path)
            return References(captions, _splits(document, path), partial=True)
    captioned = set(captioned)
    numbered = _numbered(path, document) if any(image.isdecimal() for image in captioned) else {}
    if captioned & numbered.keys():
        return References(numbered, {}, partial=True)
    if isinstance(document, dict) and not {"annotations", "images"} & document.keys():
        pairs = [(normal(image), _texts(texts, image, path)) for image, texts in document.items()]
        return References(_once(pairs, path), {}, partial=False)
    return _recorded(read_captions(path, "auto")[1], captioned)


def _recorded(records: Iterable[Record], captioned: set[str]) -> References:
    """What ingest reads, by id; by the images' files where the captions know those and no id."""
    named = [(record.id, record) for record in records]
    if captioned.isdisjoint(name for name, _ in named):
        named = [(normal(record.files[0]) if record.files else name, record) for name, record in named]
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for name, record in named:
        # As ingest has it: a blank caption is none, and an image without captions is of no split.
        if said := [text for text in record.captions if text.strip()]:
            captions.setdefault(name, []).extend(said)
            splits |= {name: record.split} if record.split else {}
    return References(captions, splits, partial=True)


def _table_or_json(path: Path) -> Any:
    """A table of images and captions as a list of objects, or else what JSON is in the file."""
    file = CaptionsFile(require(path))
    not_json = file.why_not_json()
    if not_json is None:
        return _document(path)
    if not_table := csv_table.mismatch(file):
        raise DataError(
            f"{path} is of no known form: as JSON, {not_json}; as a table, {not_table}. Captions to score are this "
            "project's captions.json, a COCO result file, a JSON mapping of image to caption, JSON lines, or a table "
            "with the columns image and caption; one caption an image."
        )
    return [{"image": record.id, "caption": text} for record in csv_table.read(file) for text in record.captions]


def _document(path: Path) -> Any:
    """JSON or JSON lines, as a list of objects or a mapping whose keys stand once."""
    if path.suffix == ".jsonl":
        return [parsed(line, place) for place, line in CaptionsFile(path).lines()]
    document = read_json(path)
    if not isinstance(document, dict | list):
        raise DataError(f"{path} holds neither a list nor a mapping of captions.")
    if isinstance(document, dict):
        _once(json.loads(read_text(path), object_pairs_hook=list), path)
    return document


def _id(entry: Any, path: Path) -> str:
    keys = [key for key in _IDS if isinstance(entry, dict) and key in entry]
    if not keys:
        raise DataError(f"{path}: expected objects with {' or '.join(_IDS)}, found {str(entry)[:60]!r}.")
    return normal(str(entry[keys[0]]))


def _listed(entries: list[Any], key: str, path: Path) -> dict[str, list[str]]:
    return _once([(_id(entry, path), _texts(entry.get(key), _id(entry, path), path)) for entry in entries], path)


def _splits(entries: list[Any], path: Path) -> dict[str, str]:
    return {_id(entry, path): split_named(str(entry["split"]), str(path)) for entry in entries if entry.get("split")}


def _numbered(path: Path, document: Any) -> dict[str, list[str]]:
    """The captions of COCO's annotations, a file or a folder of them, by the images' numbers; none of other files."""
    documents = {path: document} if path.is_file() else {file: _document(file) for file in sorted(path.glob(_COCO))}
    captions: dict[str, list[str]] = {}
    for file, own in documents.items():
        annotations = own.get("annotations") if isinstance(own, dict) else None
        for annotation in annotations if isinstance(annotations, list) else []:
            image = _id(annotation, file)
            captions.setdefault(image, []).extend(_texts([annotation.get("caption")], image, file))
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
