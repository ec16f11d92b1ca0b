"""The older tutorials' files, written by hand: what `freezeframe pack` must equal and the reader must read."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

BASE = "tiny_2_cap_per_img_0_min_word_freq"
WORDS = {"a": 1, "cat": 2, "dog": 3, "runs": 4, "<unk>": 5, "<start>": 6, "<end>": 7, "<pad>": 0}
CAPTIONS = {
    "TRAIN": [["a", "cat"], ["a", "cat"], ["dog", "runs"], ["a", "dog", "runs"], ["runs"], ["a", "<unk>", "cat"]],
    "VAL": [["cat", "runs"], ["cat"]],
    "TEST": [["dog"], ["a", "dog"]],
}
LONGEST = 4


def pixels(part: str, height: int = 7, width: int = 5) -> NDArray[np.uint8]:
    """(N, 3, height, width) of noise, other in each part."""
    count = len(CAPTIONS[part]) // 2
    return np.random.default_rng(len(part)).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def numbers(words: list[str]) -> list[int]:
    return [6, *(WORDS[word] for word in words), 7, *[0] * (LONGEST - len(words))]


def write_packed(folder: Path, base: str = BASE) -> Path:
    """Three training images, one of validation, one of test, two captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"WORDMAP_{base}.json", WORDS)
    for part, captions in CAPTIONS.items():
        with h5py.File(folder / f"{part}_IMAGES_{base}.hdf5", "w") as file:
            file.attrs["captions_per_image"] = 2
            file.create_dataset("images", data=pixels(part))
        write(folder / f"{part}_CAPTIONS_{base}.json", [numbers(words) for words in captions])
        write(folder / f"{part}_CAPLENS_{base}.json", [len(words) + 2 for words in captions])
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
