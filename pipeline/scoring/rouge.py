"""ROUGE-L (Lin 2004), as coco-caption computes it: the longest common subsequence, recall weighed by beta = 1.2."""

from collections.abc import Sequence

import numpy as np

from pipeline.scoring.ngrams import Words

_BETA = 1.2


def rouge_l(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean ROUGE-L over images, from 0 to 1.

    Args:
        hypotheses: N captions, as words; at least one.
        references: of each of them, at least one.
    """
    return float(np.mean([_of_image(words, others) for words, others in zip(hypotheses, references, strict=True)]))


def _of_image(words: Words, references: Sequence[Words]) -> float:
    """The best precision and the best recall, each over all references, into one F measure."""
    words = words or [""]  # coco-caption sees one empty word in an empty caption
    others = [reference or [""] for reference in references]
    common = [_longest_common(words, other) for other in others]
    precision = max(common) / len(words)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(one: Words, other: Words) -> int:
    """Words of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, candidate in enumerate(other, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == candidate else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
