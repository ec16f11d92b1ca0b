"""Search and sampling one image, one caption, one word at a time, in float64: what the batched ones must find.

Shares no code with them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tests.captioners.reference import Array, log_softmax

END = 2
MARKS = [0, 1, 3]  # never said


class Steps(Protocol):
    """What is searched: it says a word at a time, and only itself knows of what its memory is made."""

    def regions(self, regions: Array) -> Array:
        """Regions (R, C) as the decoder sees them."""
        ...

    def initial(self, regions: Array) -> tuple[object, ...]:
        """What is remembered before the first word."""
        ...

    @property
    def step(self) -> Callable[..., tuple[Any, ...]]:
        """One word, from (word, regions, *memory): logits (V,), weights (R,), and what is remembered."""
        ...


class Plain(Steps, Protocol):
    """A decoder as its source writes it: one caption, one word, one region at a time, in float64 or wider.

    Reads the weights `w` of the fast decoder by name and shares none of its code.
    """

    w: dict[str, Array]

    def initial(self, regions: Array) -> tuple[Array, ...]: ...

    @property
    def step(self) -> Callable[..., tuple[Array, ...]]: ...


class Found(NamedTuple):
    words: tuple[int, ...]
    log: float
    attention: Array
    finished: bool


class Beam(NamedTuple):
    log: float
    guided: float
    words: tuple[int, ...]
    weights: tuple[Array, ...]
    memory: tuple[object, ...]


def repeats(words: tuple[int, ...], size: int) -> bool:
    """Whether an n-gram occurs twice; END is no word."""
    said = [word for word in words if word != END]
    ngrams = [tuple(said[place : place + size]) for place in range(len(said) - size + 1)]
    return size > 0 and len(set(ngrams)) < len(ngrams)


def search(
    plain: Steps,
    regions: Array,
    beam: int,
    penalty: float,
    most: int,
    block: int = 0,
    groups: int = 1,
    diversity: float = 0.0,
) -> Found:
    """Beam search as its docstring describes it; Vijayakumar et al. 2016, algorithm 1, for several groups."""
    regions = plain.regions(regions)
    width = beam // groups
    beams = [[Beam(0.0, 0.0, (), (), plain.initial(regions))] for _ in range(groups)]
    finished: list[list[tuple[float, Beam]]] = [[] for _ in range(groups)]
    for time in range(most + 1):
        taken: list[int] = []
        for group in range(groups):
            if len(finished[group]) >= width:
                continue
            candidates = [
                grown._replace(guided=grown.log - diversity * taken.count(grown.words[-1]))
                for parent in beams[group]
                for grown in continuations(plain, regions, parent)
                if not repeats(grown.words, block)
            ]
            candidates.sort(key=lambda candidate: -candidate.guided)
            ended = [candidate for candidate in candidates[:width] if candidate.words[-1] == END]
            finished[group] += [(candidate.log / (time + 1) ** penalty, candidate) for candidate in ended]
            if time < most:
                beams[group] = [one for one in candidates[: 2 * width] if one.words[-1] != END][:width]
                taken += [one.words[-1] for one in beams[group]]
        if all(len(own) >= width for own in finished):
            break
    entries = [entry for own in finished for entry in own]
    if entries:
        best = max(entries, key=lambda entry: entry[0])[1]
        return Found(best.words[:-1], best.log, np.array(best.weights[:-1]).reshape(-1, len(regions)), True)
    last = max((one for own in beams for one in own), key=lambda one: one.log)
    return Found(last.words, last.log, np.array(last.weights), False)


def continuations(plain: Steps, regions: Array, parent: Beam) -> list[Beam]:
    word = parent.words[-1] if parent.words else 1
    logits, weights, *memory = plain.step(word, regions, *parent.memory)
    logits = logits.copy()
    logits[MARKS] = -math.inf
    return [
        Beam(parent.log + log, 0.0, (*parent.words, said), (*parent.weights, weights), tuple(memory))
        for said, log in enumerate(log_softmax(logits))
        if log > -math.inf
    ]


def sampled(
    plain: Steps,
    regions: Array,
    chances: Sequence[float],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    block: int = 0,
) -> Found:
    """One caption by the numbers given, one more of them than there may be words."""
    regions = plain.regions(regions)
    beam = Beam(0.0, 0.0, (), (), plain.initial(regions))
    for chance in chances:
        left = [one for one in continuations(plain, regions, beam) if not repeats(one.words, block)]
        drawn = left[choice([one.log for one in left], chance, temperature, top_k, top_p)]
        if drawn.words[-1] == END:
            return Found(beam.words, drawn.log, np.array(beam.weights).reshape(-1, len(regions)), True)
        if len(drawn.words) == len(chances):
            return Found(beam.words, beam.log, np.array(beam.weights).reshape(-1, len(regions)), False)
        beam = drawn
    raise AssertionError("a caption ends with its last number")


def choice(logs: list[float], chance: float, temperature: float, top_k: int, top_p: float) -> int:
    """The place of the word drawn: likeliest first where words are cut off, else in the vocabulary's order."""
    order = list(range(len(logs)))
    if top_k or top_p < 1:
        order.sort(key=lambda place: -logs[place])
    order = order[: top_k or len(order)]
    powers = [math.exp((logs[place] - max(logs)) / temperature) for place in order]
    shares = [power / sum(powers) for power in powers]
    if top_p < 1:
        enough = next((count for count in range(1, len(shares)) if sum(shares[:count]) >= top_p), len(shares))
        order, shares = order[:enough], shares[:enough]
    mark, passed = chance * sum(shares), 0.0
    for place, share in zip(order, shares, strict=True):
        passed += share
        if passed > mark:
            return place
    return order[-1]
