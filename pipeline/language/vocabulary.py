"""Words and the numbers that decoders know them by.

Owns the four marks, `Vocabulary`, and `vocabulary.json` (`{"words": [...]}`, a word's number being its place in the
list). Does not know how text becomes words, nor which captions it is given: the caller hands over training captions.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeGuard

from pipeline.errors import DataError
from pipeline.files import read_json, sha256_of_json, write_json
from pipeline.settings import Range

PAD, START, END, UNKNOWN = 0, 1, 2, 3
MARKS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class TokenizeSettings:
    """The section `tokenize`."""

    min_count: Annotated[int, Range(1, None)]
    max_words: Annotated[int, Range(1, None)] | None
    max_length: Annotated[int, Range(1, 1000)]
    captions_per_image: Literal["all"] | Annotated[int, Range(1, 1000)]
    seed: Annotated[int, Range(0, None)]


@dataclass(frozen=True)
class Vocabulary:
    """Every word a decoder can say; `len` counts the four marks as well.

    Attributes:
        words: the marks, then the words by falling count, equal counts in alphabetical order.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]], min_count: int, max_words: int | None) -> Self:
        """Count words.

        Args:
            captions: the words of each training caption.
            min_count: a word said less often is unknown.
            max_words: how many words are kept at most, marks not counted; None keeps all.
        """
        counts = Counter(word for caption in captions for word in caption if word not in MARKS)
        often = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls(MARKS + tuple(word for _, word in often[:max_words]))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The number of each word; a mark has none, so that no caption can write it."""
        return {word: number for number, word in enumerate(self.words) if number >= len(MARKS)}

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the words in their order."""
        return sha256_of_json(self.words)

    def encode(self, words: Sequence[str]) -> list[int]:
        """The numbers of a caption: START, its words (UNKNOWN where not known), END."""
        return [START, *(self.ids.get(word, UNKNOWN) for word in words), END]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The words before the first END, without START and PAD; UNKNOWN reads `<unk>`."""
        words = []
        for number in numbers:
            if number == END:
                break
            if number not in (START, PAD):
                words.append(self.words[number])
        return words

    def write(self, path: Path) -> None:
        """Write `vocabulary.json`."""
        write_json(path, {"words": list(self.words)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `vocabulary.json`.

        Raises:
            MissingError: it is not there.
            DataError: it is not JSON, or not a vocabulary.
        """
        content = read_json(path, made_by="tokenize")
        words = content.get("words") if isinstance(content, dict) else None
        if not _is_vocabulary(words):
            raise DataError(
                f'{path} is not a vocabulary: expected {{"words": [...]}} with distinct words after the marks '
                f'{", ".join(MARKS)}. Run "dvc repro -f tokenize" to write it again.'
            )
        return cls(tuple(words))


def _is_vocabulary(words: object) -> TypeGuard[list[str]]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return False
    return tuple(words[: len(MARKS)]) == MARKS and len(set(words)) == len(words)
