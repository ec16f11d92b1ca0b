"""The older tutorials' files: images in HDF5, captions as numbers in JSON, a word map.

Owns that format, which sgrvinod's a-PyTorch-Tutorial-to-Image-Captioning defined and many projects took over: the
names of the files, the marks of the word map, and how images and captions lie in them. Such files carry no ids, so
images are called by split and place (`train-000012`). `freezeframe pack` writes them.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.dataset import Split
from pipeline.datasets.records import CaptionsFile, Record
from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.hdf5 import hdf5_errors, open_hdf5

PARTS: dict[str, Split] = {"TRAIN": "train", "VAL": "validation", "TEST": "test"}
MARKS = UNKNOWN, START, END, PAD = "<unk>", "<start>", "<end>", "<pad>"
IMAGES, CAPTIONS_PER_IMAGE = "images", "captions_per_image"
_WORD_MAP = re.compile(r"WORDMAP_(.+)\.json")
_BLOCK = 64  # images read at once


@dataclass(frozen=True)
class Names:
    """How the files of one set are called."""

    folder: Path
    base: str

    @property
    def word_map(self) -> Path:
        return self.folder / f"WORDMAP_{self.base}.json"

    def images(self, part: str) -> Path:
        """The HDF5 file of a part (TRAIN, VAL, TEST)."""
        return self.folder / f"{part}_IMAGES_{self.base}.hdf5"

    def captions(self, part: str) -> Path:
        """The captions of a part, as numbers."""
        return self.folder / f"{part}_CAPTIONS_{self.base}.json"

    def lengths(self, part: str) -> Path:
        """The captions' lengths, start and end counted."""
        return self.folder / f"{part}_CAPLENS_{self.base}.json"


def word_map(words: list[str]) -> dict[str, int]:
    """Words from 1, then the marks; padding is 0."""
    numbers = {word: number for number, word in enumerate(words, start=1)}
    return {**numbers, **{mark: len(words) + 1 + place for place, mark in enumerate((UNKNOWN, START, END))}, PAD: 0}


def mismatch(captions: CaptionsFile) -> str | None:
    """Why this is not a folder of such files, None if it is."""
    if not captions.path.is_dir():
        return "it is a file; expected the folder of *_IMAGES_*.hdf5"
    if not any(any(captions.path.glob(f"{part}_IMAGES_*.hdf5")) for part in PARTS):
        return "the folder has no TRAIN_IMAGES_*.hdf5, VAL_IMAGES_*.hdf5 or TEST_IMAGES_*.hdf5"
    return None


def read(captions: CaptionsFile) -> tuple[Record, ...]:
    """One record an image: training, validation, test, each in the order of its file.

    A caption's words are joined by blanks; a word the map does not hold reads `<unk>`, which no vocabulary counts as a
    word. Captions that were repeated to fill up an image's number stand once.

    Raises:
        DataError: a file is damaged, or the files contradict each other; the message says where.
        MissingError: a file of the set is not there.
    """
    names = _names(captions.path)
    words = _words(names.word_map)
    return tuple(record for part in _parts(names) for record in _read_part(names, part, words))


def unpack_images(path: Path, folder: Path, workers: int) -> Iterator[tuple[str, str]]:
    """Write every image as PNG, without loss; few are in memory at a time.

    Args:
        path: the folder of the files.
        folder: an existing one, where the images go.
        workers: threads; 0 is one a core.

    Yields:
        The name of each image's file, in the order of `read`, and its SHA-256.

    Raises:
        DataError: a file is damaged.
    """
    names = _names(path)
    with ThreadPoolExecutor(workers or None) as pool:
        for part in _parts(names):
            source = names.images(part)
            with open_hdf5(source) as file:
                images = _images(file, source)
                for start in range(0, len(images), _BLOCK):
                    with hdf5_errors(source):
                        block = images[start : start + _BLOCK]
                    files = [folder / _file(part, start + place) for place in range(len(block))]
                    yield from zip((file.name for file in files), pool.map(_write_png, files, block), strict=True)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> str:
    content = io.BytesIO()
    # Level 1: three times as fast as the default and hardly larger.
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(content, "PNG", compress_level=1)
    path.write_bytes(content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def _names(folder: Path) -> Names:
    bases = sorted(match[1] for path in folder.iterdir() if (match := _WORD_MAP.fullmatch(path.name)))
    if len(bases) != 1:
        found = ", ".join(bases) or "none"
        raise DataError(
            f"{folder}: expected the files of one set with one WORDMAP_*.json, found {len(bases)} ({found}). "
            "Give each set a folder of its own."
        )
    return Names(folder, bases[0])


def _parts(names: Names) -> list[str]:
    return [part for part in PARTS if names.images(part).exists()]


def _file(part: str, place: int) -> str:
    return f"{PARTS[part]}-{place:06d}.png"


def _words(path: Path) -> dict[int, str]:
    """The word of each number, marks included."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(_is_count(number) for number in found.values()):
        raise DataError(f"{path} is no word map; expected an object that gives each word a whole number.")
    if lost := [mark for mark in MARKS if mark not in found]:
        raise DataError(f"{path} lacks {', '.join(lost)}, which the captions need. It belongs to other files.")
    words = {number: word for word, number in found.items()}
    if len(words) != len(found):
        raise DataError(f"{path} gives one number to two words, so the captions cannot be read back.")
    return words


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _images(file: Any, path: Path) -> Any:
    """The dataset of images, (N, 3, rows, columns) uint8."""
    with hdf5_errors(path):
        images = file.get(IMAGES)
        shape, kind = getattr(images, "shape", None), getattr(images, "dtype", None)
    if shape is None or len(shape) != 4 or shape[1] != 3 or kind != np.uint8:
        found = f"{kind} {shape}" if shape is not None else f"none; the file holds {', '.join(file) or 'nothing'}"
        raise DataError(f'{path}: expected a dataset "{IMAGES}", uint8 (N, 3, rows, columns), found {found}.')
    return images


def _read_part(names: Names, part: str, words: dict[int, str]) -> Iterator[Record]:
    path = names.images(part)
    with open_hdf5(path) as file:
        count = len(_images(file, path))
        with hdf5_errors(path):
            each = file.attrs.get(CAPTIONS_PER_IMAGE)
    if not isinstance(each, np.integer) or each < 1:
        raise DataError(f'{path}: expected the attribute "{CAPTIONS_PER_IMAGE}", a number from 1, found {each}.')
    each = int(each)
    said = [_list(read_json(own), own, count * each) for own in (names.captions(part), names.lengths(part))]
    for place in range(count):
        own = range(place * each, (place + 1) * each)
        texts = (_text(said[0][row], said[1][row], words, f"{names.captions(part)}, entry {row}") for row in own)
        name = _file(part, place)
        yield Record(name.removesuffix(".png"), (name,), tuple(dict.fromkeys(texts)), PARTS[part])


def _list(found: Any, path: Path, count: int) -> list[Any]:
    if not isinstance(found, list) or len(found) != count:
        number = f"{len(found):,}" if isinstance(found, list) else "no list"
        raise DataError(
            f"{path}: expected a list of {count:,} entries, as many as the images have captions, found {number}. The "
            "files are not of one set, or one was cut short."
        )
    return found


def _text(numbers: Any, length: Any, words: dict[int, str], place: str) -> str:
    """The words between start and end, which must stand where the length says."""
    if not isinstance(numbers, list) or not all(_is_count(number) for number in numbers):
        raise DataError(f"{place}: expected a list of whole numbers, found {json.dumps(numbers)[:60]}.")
    if lost := [number for number in numbers if number not in words]:
        raise DataError(f"{place}: the word map has no word for {lost[0]}; the files are not of one set.")
    said = [words[number] for number in numbers]
    if not _is_count(length) or said[:1] != [START] or said[length - 1 : length] != [END] or END in said[: length - 1]:
        raise DataError(
            f"{place}: expected {START}, words and {END}, together {json.dumps(length)[:20]} as CAPLENS says, found "
            f"{' '.join(said[:20])!r}."
        )
    return " ".join(word for word in said[1 : length - 1] if word not in (START, PAD))
