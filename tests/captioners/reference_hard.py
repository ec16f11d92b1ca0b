"""The hard decoder as the paper writes it (Xu et al. 2015, section 4.1): the soft one, but for what is seen."""

import itertools

import numpy as np

from tests.captioners.reference import Array, PlainSoft, log_softmax


class PlainHard(PlainSoft):
    """As it searches: the likeliest region is seen."""

    def attend(self, regions: Array, hidden: Array) -> Array:
        weights = super().attend(regions, hidden)
        likeliest = max(range(len(weights)), key=lambda place: weights[place])
        return self.only(weights, likeliest)

    def only(self, weights: Array, place: int) -> Array:
        seen = np.zeros_like(weights)
        seen[place] = 1
        return seen


class PlainDraw(PlainHard):
    """As it learns, with the regions drawn at the words to come; keeps the attention they were drawn from."""

    def __init__(self, weights: dict[str, Array], options: tuple[str, bool, bool], drawn: tuple[int, ...]) -> None:
        super().__init__(weights, *options)
        self.drawn, self.attention = list(drawn), list[Array]()

    def attend(self, regions: Array, hidden: Array) -> Array:
        self.attention.append(PlainSoft.attend(self, regions, hidden))
        return self.only(self.attention[-1], self.drawn[len(self.attention) - 1])


def expected_loss(
    weights: dict[str, Array], options: tuple[str, bool, bool], regions: Array, words: list[int]
) -> Array:
    """-E[log p(y | s)] of a caption over all choices s of its regions (eq. 8-10)."""
    total = np.zeros((), regions.dtype)
    for drawn in itertools.product(range(len(regions)), repeat=len(words) - 1):
        plain = PlainDraw(weights, options, drawn)
        logits, _ = plain.caption(regions, words)
        log = sum(log_softmax(row)[word] for row, word in zip(logits, words[1:], strict=True))
        chance = np.prod([attention[place] for attention, place in zip(plain.attention, drawn, strict=True)])
        total = total - chance * log
    return total
