"""BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), as coco-caption computes it.

Owns the formula: clipped counts, the closest reference length (ties to the shorter), no smoothing. Agrees with
nltk's `corpus_bleu` except for captions shorter than n words, where coco-caption's counts are used. Does not know how
text becomes words.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.ngrams import LONGEST, Ngram, Words, count_ngrams

_TINY, _SMALL = 1e-15, 1e-9
"""coco-caption's guards against division by zero; they are part of its figures."""


def closest_length(length: int, reference_lengths: Sequence[int]) -> int:
    """The reference length nearest to `length`; of two equally near, the shorter."""
    return min((abs(other - length), other) for other in reference_lengths)[1]


def most_counts(references: Sequence[Words]) -> dict[Ngram, int]:
    """For each n-gram, the count that one reference has at most: what a caption's own count is clipped to."""
    most: dict[Ngram, int] = {}
    for reference in references:
        for ngram, count in count_ngrams(reference).items():
            most[ngram] = max(count, most.get(ngram, 0))
    return most


def bleu_from_counts(
    correct: NDArray[np.float64],
    guessed: NDArray[np.float64],
    length: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The formula, for any number of corpora at once.

    Args:
        correct: (..., 4) clipped counts of n-grams found in the references.
        guessed: (..., 4) counts of all n-grams said.
        length: (...) words said.
        reference: (...) words of the closest references.

    Returns:
        (..., 4) BLEU-1 to BLEU-4, from 0 to 1.
    """
    precisions = (correct + _TINY) / (guessed + _SMALL)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (length + _TINY) / (reference + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return np.asarray(means * brevity[..., np.newaxis], dtype=np.float64)


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus, from 0 to 1.

    Args:
        hypotheses: N captions, as words.
        references: of each of them, at least one.
    """
    one, two, three, four = bleu_from_counts(*corpus_counts(hypotheses, references)).tolist()
    return one, two, three, four


def corpus_counts(
    hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What BLEU is made of, as `bleu_from_counts` takes it: (4,), (4,), () and ()."""
    correct, guessed = np.zeros(LONGEST), np.zeros(LONGEST)
    length = reference_length = 0
    for words, others in zip(hypotheses, references, strict=True):
        most = most_counts(others)
        for ngram, count in count_ngrams(words).items():
            correct[len(ngram) - 1] += min(count, most.get(ngram, 0))
            guessed[len(ngram) - 1] += count
        length += len(words)
        reference_length += closest_length(len(words), [len(other) for other in others])
    return correct, guessed, np.array(length, dtype=np.float64), np.array(reference_length, dtype=np.float64)
