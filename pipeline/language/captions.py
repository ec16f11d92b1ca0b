"""Captions as numbers.

Owns `captions.npz` and how many captions an image brings to training. Does not know what a data set or a vocabulary
is: rows and numbers are all there is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files import NUMPY_ERRORS, replacing, require
from pipeline.language.vocabulary import END, PAD, START

Words = Sequence[str]


@dataclass(frozen=True)
class EncodedCaptions:
    """The captions of training and validation images, images in row order, captions in theirs.

    Attributes:
        row: (M,) int32, the image's row in `dataset.jsonl` and in the feature cache.
        words: (M, T) int32, `START w1 .. wn END PAD ..`.
        lengths: (M,) int32, words with START and END.
        dataset: the SHA-256 of the `dataset.jsonl` that rows are of; empty where there is none.
    """

    row: NDArray[np.int32]
    words: NDArray[np.int32]
    lengths: NDArray[np.int32]
    dataset: str = ""

    @classmethod
    def of(cls, rows: Sequence[int], captions: Sequence[Sequence[int]], dataset: str = "") -> Self:
        """Pad captions to the longest.

        Args:
            rows: (M,) the image of each caption.
            captions: M lists of numbers, each with START and END.
            dataset: the SHA-256 of the `dataset.jsonl` that rows are of.
        """
        lengths = np.array([len(caption) for caption in captions], dtype=np.int32)
        words = np.full((len(captions), lengths.max(initial=0)), PAD, dtype=np.int32)
        for line, caption in zip(words, captions, strict=True):
            line[: len(caption)] = caption
        return cls(np.array(rows, dtype=np.int32), words, lengths, dataset)

    def write(self, path: Path) -> None:
        """Write `captions.npz`, without pickle; the same captions give the same bytes."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, row=self.row, words=self.words, lengths=self.lengths, dataset=np.array(self.dataset))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `captions.npz`.

        Raises:
            MissingError: tokenize has not run.
            DataError: the file is damaged, or not what tokenize writes.
        """
        require(path, made_by="tokenize")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                captions = cls(arrays["row"], arrays["words"], arrays["lengths"], str(arrays["dataset"]))
            captions._check()
        except (*NUMPY_ERRORS, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} does not hold captions as tokenize writes them ({error}). "
                'Run "dvc repro -f tokenize" to write it again.'
            ) from error
        return captions

    def require_dataset(self, dataset: str) -> None:
        """Refuse captions whose rows are those of another data set.

        Args:
            dataset: the SHA-256 of `dataset.jsonl`.

        Raises:
            DataError: they are.
        """
        if dataset != self.dataset:
            raise DataError(
                "The captions in data/tokens were made from another data set than the one in data/dataset, so their "
                'rows may be of other images. Run "dvc repro tokenize".'
            )

    def _check(self) -> None:
        if {array.dtype for array in (self.row, self.words, self.lengths)} != {np.dtype(np.int32)}:
            raise ValueError("an array is not int32")
        if not self.row.shape == self.lengths.shape == self.words.shape[:1] or self.words.ndim != 2:
            raise ValueError(f"shapes {self.row.shape}, {self.words.shape} and {self.lengths.shape} do not agree")
        if len(self.row) == 0 or self.lengths.min() < 2 or self.lengths.max() > self.words.shape[1]:
            raise ValueError("a length is out of range")
        last = self.words[np.arange(len(self.lengths)), self.lengths - 1]
        if (self.words[:, 0] != START).any() or (last != END).any():
            raise ValueError("a caption does not go from START to END")


def short_enough(captions: Sequence[Words], max_length: int) -> list[Words]:
    """An image's captions of 1 to `max_length` words; where there is none, its shortest, cut.

    Returns:
        At least one caption, unless none has a word.
    """
    spoken = [caption for caption in captions if caption]
    kept = [caption for caption in spoken if len(caption) <= max_length]
    return kept or [min(spoken, key=len)[:max_length]] if spoken else []


def choose(captions: Sequence[Words], count: int | Literal["all"], seed: int, image: str) -> list[Words]:
    """So many captions of an image: sampled without replacement, or dealt again and again where there are fewer.

    Args:
        captions: the image's.
        count: how many; `all` keeps them as they are.
        seed: of the choice.
        image: its id; the choice depends on it and on no other image.

    Returns:
        `count` captions in the order of `captions`.
    """
    if count == "all" or not captions:
        return list(captions)
    order = random.Random(f"{seed}/{image}").sample(range(len(captions)), len(captions))
    return [captions[place] for place in sorted((order * count)[:count])]
