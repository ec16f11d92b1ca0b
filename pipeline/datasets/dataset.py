"""What an image, a caption and a split are, and the data set as ingest leaves it.

Owns `data/dataset/`: `dataset.jsonl` (one image a line, in the order of its source, which is the row order of
everything that follows), `images.jsonl` (of the same lines what encoding depends on, so that a mended caption or
another split never encodes) and `summary.json` (where it came from and what was left out). Does not know any source
format, and decodes no image.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline.errors import DataError
from pipeline.files import read_json, read_text
from pipeline.settings import Range

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSettings:
    """The section `data`."""

    format: Literal["auto", "flickr", "karpathy", "coco", "csv", "jsonl", "hdf5", "shapes"]
    images: str
    captions: str
    splits: str
    seed: int
    drawn_images: Annotated[int, Range(30, 100_000)]
    on_missing: Literal["stop", "skip"]
    on_bad_image: Literal["stop", "skip"]
    workers: Annotated[int, Range(0, 1024)]


@dataclass(frozen=True)
class Example:
    """One image with everything said about it.

    Attributes:
        id: its name in the source, unique.
        file: its path inside the images folder, with forward slashes.
        split: train, validation or test.
        captions: as written, untouched but for white space at the ends.
        sha256: of the image file's content.
    """

    id: str
    file: str
    split: Split
    captions: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """All images in row order.

    Attributes:
        examples: one an image.
        summary: `format`, `drawn` (whether the project drew the images), `generated_ids` where the source has none,
            and what was left out: `skipped`, a list of `{"image", "reason"}`.
    """

    examples: tuple[Example, ...]
    summary: dict[str, Any]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(example.id for example in self.examples)

    def rows(self, split: Split) -> list[int]:
        """The rows of one split, ascending."""
        return [row for row, example in enumerate(self.examples) if example.split == split]


@dataclass(frozen=True)
class ImageFile:
    """What encoding needs of an image: `id`, `file` and `sha256` of its `Example`."""

    id: str
    file: str
    sha256: str


def write_dataset(folder: Path, examples: Sequence[Example], summary: dict[str, Any]) -> None:
    """Write the files of `data/dataset/` into an existing folder (its caller makes it whole or absent)."""
    images = [ImageFile(example.id, example.file, example.sha256) for example in examples]
    _write_lines(folder / "dataset.jsonl", examples)
    _write_lines(folder / "images.jsonl", images)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: Sequence[Example] | Sequence[ImageFile]) -> None:
    lines = (json.dumps(asdict(record), ensure_ascii=False) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def images_folder(folder: Path, images: Path) -> Path:
    """Where the image files lie: beside the list if the project made them, else where the user keeps them."""
    return folder / "images" if (folder / "images").is_dir() else images


def read_images(folder: Path) -> tuple[ImageFile, ...]:
    """Read the images of `data/dataset/`, in row order, without what is said about them.

    Raises:
        MissingError, DataError: as `read_dataset`.
    """
    return tuple(ImageFile(**record) for record in _read_lines(folder / "images.jsonl", ImageFile))


def read_dataset(folder: Path) -> Dataset:
    """Read `data/dataset/`.

    Raises:
        MissingError: ingest has not run.
        DataError: a line is not what ingest writes; the message has its number.
    """
    summary = read_json(folder / "summary.json", made_by="ingest")
    lines = _read_lines(folder / "dataset.jsonl", Example)
    return Dataset(tuple(Example(**{**record, "captions": tuple(record["captions"])}) for record in lines), summary)


def _read_lines(path: Path, kind: type) -> list[dict[str, Any]]:
    names, records = {field.name for field in fields(kind)}, []
    # Not splitlines(): a caption may hold U+2028 and its like, which JSON leaves as they are.
    for number, line in enumerate(read_text(path, made_by="ingest").removesuffix("\n").split("\n"), start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or record.keys() != names:
                raise ValueError(f"expected an object with {', '.join(sorted(names))}")
        except ValueError as error:
            raise DataError(f'{path}, line {number}: {error}. Run "dvc repro -f ingest" to write it again.') from error
        records.append(record)
    return records
