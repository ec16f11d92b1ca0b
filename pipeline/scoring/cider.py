"""CIDEr-D (Vedantam et al. 2015), the one that coco-caption prints as CIDEr.

Owns document frequencies and the formula. Does not know how text becomes words. Self-critical training counts on the
device instead (`training/reward.py`), and is held against this.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring.ngrams import LONGEST, Ngram, Words, count_ngrams

SIGMA = 6.0


@dataclass(frozen=True)
class _Vector:
    """A caption as tf-idf: weights of its n-grams, their norm for each n, and its length.

    coco-caption counts the length in bigrams; only differences matter, and they are the same.
    """

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int


class CiderD:
    """Scores captions against references whose document frequencies were counted once."""

    def __init__(self, references: Sequence[Sequence[Words]]) -> None:
        """Count, for each n-gram, the images whose references hold it.

        Args:
            references: of each of N images, at least one; also what captions are scored against.
        """
        self._references = references
        self._frequencies: Counter[Ngram] = Counter()
        for others in references:
            self._frequencies.update({ngram for words in others for ngram in count_ngrams(words)})
        self._log_images = math.log(len(references)) if references else 0.0

    def score(self, hypotheses: Sequence[Words], images: Sequence[int] | None = None) -> NDArray[np.float64]:
        """CIDEr-D of each caption, times 10 as in coco-caption.

        Args:
            hypotheses: M captions, as words.
            images: (M,) which image's references each is held against; None when M = N and the orders agree.

        Returns:
            (M,) scores from 0 to 10. With a single image every n-gram is in every image, so all are 0 and mean
            nothing.
        """
        places = range(len(self._references)) if images is None else images
        known: dict[int, list[_Vector]] = {}
        scores = np.empty(len(hypotheses))
        for number, (words, image) in enumerate(zip(hypotheses, places, strict=True)):
            if image not in known:
                known[image] = [self._vector(reference) for reference in self._references[image]]
            said = self._vector(words)
            scores[number] = 10 * sum(_similarity(said, other) for other in known[image]) / len(known[image])
        return scores

    def agreement(self, hypotheses: Sequence[Words], images: Sequence[int]) -> NDArray[np.float64]:
        """CIDEr-D of every caption against every image's references, as `score` gives it: (M, N).

        Args:
            hypotheses: M captions, as words.
            images: N images.
        """
        known = [[self._vector(reference) for reference in self._references[image]] for image in images]
        said = [self._vector(words) for words in hypotheses]
        means = [[sum(_similarity(one, other) for other in own) / len(own) for own in known] for one in said]
        return 10 * np.array(means)

    def _vector(self, words: Words) -> _Vector:
        weights: dict[Ngram, float] = {}
        squares = [0.0] * LONGEST
        for ngram, count in count_ngrams(words).items():
            weight = count * (self._log_images - math.log(max(1, self._frequencies[ngram])))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return _Vector(weights, tuple(map(math.sqrt, squares)), len(words))


def _similarity(said: _Vector, reference: _Vector) -> float:
    """Clipped cosine, averaged over n, times a Gaussian of the difference in length."""
    products = [0.0] * LONGEST
    for ngram, weight in said.weights.items():
        if other := reference.weights.get(ngram):
            products[len(ngram) - 1] += min(weight, other) * other
    norms = (one * other for one, other in zip(said.norms, reference.norms, strict=True))
    cosines = (product / norm for product, norm in zip(products, norms, strict=True) if norm)
    return sum(cosines) / LONGEST * math.exp(-((said.length - reference.length) ** 2) / (2 * SIGMA**2))
