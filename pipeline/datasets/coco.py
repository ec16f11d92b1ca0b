"""COCO's `captions_train2014.json` and its like, one file or a folder of several.

Owns that format: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`. Of several files,
each name says a split (train, val, test). COCO's test captions are secret, so where no file is the test's, the
validation images are halved between validation and test, by a hash of their ids.
"""

import re
from collections import defaultdict
from pathlib import Path

from pipeline.datasets.dataset import Split
from pipeline.datasets.records import CaptionsFile, Record, list_at, normal, split_named, text_at
from pipeline.datasets.splits import fraction
from pipeline.errors import DataError

_PART = re.compile(r"(train|val|test)\d*")


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not COCO's format, None if it is."""
    if captions.path.is_dir():
        return None if _files(captions.path) else "the folder has no captions_*.json"
    if reason := captions.why_not_json():
        return reason
    document = captions.document
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            return f'it has no list "{key}"'
    captioned = any(isinstance(annotation, dict) and "caption" in annotation for annotation in document["annotations"])
    return None if captioned else "its annotations have no captions (is it an instances_*.json?)"


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image; captions of an unlisted image become a record without a file.

    Raises:
        DataError: a key is missing or of another kind, or a file name stands twice; the message says where.
    """
    if not captions.path.is_dir():
        return _unique(_read_one(captions, None), captions.path)
    records: list[Record] = []
    for path in _files(captions.path):
        part = _PART.search(path.stem)
        records += _read_one(CaptionsFile(path), split_named(part[1], str(path)) if part else None)
    return _halved(_unique(records, captions.path))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("captions_*.json"))


def _read_one(captions: CaptionsFile, split: Split | None) -> list[Record]:
    place = str(captions.path)
    said: dict[str, list[str]] = defaultdict(list)
    for number, annotation in enumerate(list_at(captions.document, "annotations", place)):
        caption = text_at(annotation, "caption", f"{place}, annotations[{number}]")
        said[str(annotation.get("image_id"))].append(caption)
    records = []
    for number, image in enumerate(list_at(captions.document, "images", place)):
        name = text_at(image, "file_name", f"{place}, images[{number}]")
        records.append(
            Record(normal(name), _places(name, captions.path), tuple(said.pop(str(image.get("id")), ())), split)
        )
    return records + [Record(f"image_id {key}", (), tuple(texts), split) for key, texts in said.items()]


def _places(name: str, captions: Path) -> tuple[str, ...]:
    """Directly in the images folder, or in the sub-folder of its part (train2014, val2017, ...)."""
    parts = [part[0] for part in (_PART.search(name), _PART.search(captions.stem)) if part]
    return tuple(dict.fromkeys((name, *(f"{part}/{name}" for part in parts))))


def _unique(records: list[Record], path: Path) -> tuple[Record, ...]:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{path}: {record.id} stands twice among the images; file names must be unique.")
        seen.add(record.id)
    return tuple(records)


def _halved(records: tuple[Record, ...]) -> tuple[Record, ...]:
    if any(record.split == "test" for record in records):
        return records
    return tuple(
        Record(record.id, record.files, record.captions, "test")
        if record.split == "validation" and fraction(record.id, 0) < 0.5
        else record
        for record in records
    )
