"""What an image, a caption and a split are, and the data set as ingest leaves it.

Owns `data/dataset/`: `dataset.jsonl` (one image a line, in the order of its source, which is the row order of
everything that follows) and `summary.json` (where it came from and what was left out). Does not know any source
format, and decodes no image.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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

    format: Literal["auto", "flickr", "karpathy", "coco", "csv", "jsonl", "shapes"]
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
        summary: `format`, `drawn` (whether the project drew the images), and what was left out:
            `skipped`, a list of `{"image", "reason"}`.
    """

    examples: tuple[Example, ...]
    summary: dict[str, Any]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(example.id for example in self.examples)

    def rows(self, split: Split) -> list[int]:
        """The rows of one split, ascending."""
        return [row for row, example in enumerate(self.examples) if example.split == split]

    def images_folder(self, folder: Path, images: str) -> Path:
        """Where the image files lie: beside the list if the project drew them, else where the user keeps them."""
        return folder / "images" if self.summary["drawn"] else Path(images)


def write_dataset(folder: Path, examples: Iterable[Example], summary: dict[str, Any]) -> None:
    """Write the two files of `data/dataset/` into an existing folder (its caller makes it whole or absent)."""
    lines = (json.dumps(asdict(example), ensure_ascii=False) for example in examples)
    (folder / "dataset.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    """Read `data/dataset/`.

    Raises:
        MissingError: ingest has not run.
        DataError: a line is not what ingest writes; the message has its number.
    """
    summary = read_json(folder / "summary.json", made_by="ingest")
    path = folder / "dataset.jsonl"
    examples = []
    # Not splitlines(): a caption may hold U+2028 and its like, which JSON leaves as they are.
    for number, line in enumerate(read_text(path, made_by="ingest").removesuffix("\n").split("\n"), start=1):
        try:
            fields = json.loads(line)
            examples.append(Example(**{**fields, "captions": tuple(fields["captions"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f'{path}, line {number}: {error}. Run "dvc repro -f ingest" to write it again.') from error
    return Dataset(tuple(examples), summary)
