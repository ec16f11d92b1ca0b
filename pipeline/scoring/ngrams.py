"""Runs of one to four words, which BLEU and CIDEr count."""

from collections import Counter
from collections.abc import Sequence

LONGEST = 4

Words = Sequence[str]
Ngram = tuple[str, ...]


def count_ngrams(words: Words) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    words = tuple(words)
    return Counter(
        words[start : start + size] for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )
