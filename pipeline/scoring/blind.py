"""The best caption that ignores the image: what any score has to be held against.

Owns its choice: of all captions seen in training, the one with the highest BLEU-4 when it is said of every validation
image. Does not score the evaluated split; its caption is scored there like any other.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.bleu import bleu_from_counts, closest_length, most_counts
from pipeline.scoring.ngrams import LONGEST, Ngram, Words, count_ngrams


def blind_caption(training: Sequence[Words], validation_references: Sequence[Sequence[Words]]) -> list[str]:
    """The training caption with the best validation BLEU-4, the first in alphabetical order of those equally good.

    Args:
        training: captions as words, at least one; repetitions do no harm.
        validation_references: of each of N images, at least one.
    """
    candidates = sorted({tuple(words) for words in training})
    return list(candidates[int(np.argmax(bleu4_of_each(candidates, validation_references)))])


def bleu4_of_each(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """BLEU-4 of each caption when it is said of every image.

    An n-gram that a caption holds k times is correct min(k, most) times an image, so its sum over images depends on
    the n-gram and k alone; the closest reference lengths depend on the caption's length alone.

    Args:
        captions: M captions, as words.
        references: of each of N images, at least one.

    Returns:
        (M,) scores from 0 to 1.
    """
    images = len(references)
    clipped = _clipped_sums(references)
    correct = np.array([_correct(count_ngrams(words), clipped) for words in captions], dtype=np.float64)
    lengths = np.array([len(words) for words in captions])
    guessed = np.maximum(0, lengths[:, np.newaxis] - np.arange(LONGEST)) * float(images)
    scores = bleu_from_counts(correct, guessed, lengths * float(images), _closest_sums(lengths, references))
    return np.asarray(scores[:, -1])


def _clipped_sums(references: Sequence[Sequence[Words]]) -> dict[Ngram, list[int]]:
    """For each n-gram, at place k - 1: the sum over images of min(k, most)."""
    often: dict[Ngram, Counter[int]] = {}
    for others in references:
        for ngram, most in most_counts(others).items():
            often.setdefault(ngram, Counter())[most] += 1
    return {
        ngram: [sum(min(k, most) * images for most, images in found.items()) for k in range(1, max(found) + 1)]
        for ngram, found in often.items()
    }


def _correct(counts: Counter[Ngram], clipped: dict[Ngram, list[int]]) -> list[int]:
    sums = [0] * LONGEST
    for ngram, count in counts.items():
        if ngram in clipped:
            sums[len(ngram) - 1] += clipped[ngram][min(count, len(clipped[ngram])) - 1]
    return sums


def _closest_sums(lengths: NDArray[np.int64], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """For each caption, the closest reference lengths summed over images."""
    others = Counter(tuple(sorted({len(words) for words in image})) for image in references)
    sums = {
        length: sum(closest_length(length, reference) * images for reference, images in others.items())
        for length in set(lengths.tolist())
    }
    return np.array([sums[length] for length in lengths.tolist()], dtype=np.float64)
