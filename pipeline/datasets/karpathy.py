"""Karpathy's `dataset_flickr8k.json`, `dataset_flickr30k.json` and `dataset_coco.json`.

Owns that format: `{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}`.
"""

from typing import Any

from pipeline.datasets.records import CaptionsFile, Record, list_at, normal, split_named, text_at
from pipeline.errors import DataError


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not Karpathy's format, None if it is: the first image decides."""
    if reason := captions.why_not_json():
        return reason
    images = captions.document.get("images") if isinstance(captions.document, dict) else None
    if not isinstance(images, list) or not images:
        return 'it has no list "images"'
    fits = isinstance(images[0], dict) and "sentences" in images[0]
    return None if fits else 'its images have no "sentences"'


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image, with its split where it has one.

    Raises:
        DataError: a key is missing or of another kind, or a file name stands twice; the message says where.
    """
    records: dict[str, Record] = {}
    for number, image in enumerate(list_at(captions.document, "images", str(captions.path))):
        record = _record(image, f"{captions.path}, images[{number}]")
        if record.id in records:
            raise DataError(f"{captions.path}, images[{number}]: {record.id} stands twice; file names must be unique.")
        records[record.id] = record
    return tuple(records.values())


def _record(image: Any, place: str) -> Record:
    name = text_at(image, "filename", place)
    files = (f"{text_at(image, 'filepath', place)}/{name}", name) if image.get("filepath") else (name,)
    split = split_named(text_at(image, "split", place), place) if "split" in image else None
    sentences = list_at(image, "sentences", place)
    raw = tuple(text_at(sentence, "raw", f"{place}.sentences[{n}]") for n, sentence in enumerate(sentences))
    return Record(normal(name), files, raw, split)
