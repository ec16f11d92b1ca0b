"""The soft decoder as the paper writes it: one caption, one word, one region at a time, in float64 or wider.

Reads the weights of the fast decoder by name and shares none of its code.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def normalised(regions: Array) -> Array:
    return np.stack([(a - a.mean()) / np.sqrt(a.var() + 1e-5) for a in regions])


class PlainSoft:
    """Xu et al. 2015, section 3.1, with the options of the fast decoder."""

    def __init__(self, weights: dict[str, Array], activation: str, gate: bool, normalise: bool) -> None:
        self.w, self.activation, self.gate, self.normalise = weights, activation, gate, normalise

    def regions(self, regions: Array) -> Array:
        return normalised(regions) if self.normalise else regions

    def initial(self, regions: Array) -> tuple[Array, Array]:
        mean = sum(regions) / len(regions)
        both = np.tanh(self.w["initial.weight"] @ mean + self.w["initial.bias"])
        half = len(both) // 2
        return both[:half], both[half:]

    def attend(self, regions: Array, hidden: Array) -> Array:
        size = len(self.w["attention.score"])
        query = (self.w["from_hidden.weight"] @ hidden + self.w["from_hidden.bias"])[:size]
        energies = []
        for region in regions:  # eq. 4
            total = self.w["attention.key.weight"] @ region + self.w["attention.key.bias"] + query
            value = np.maximum(total, 0) if self.activation == "relu" else np.tanh(total)
            energies.append(self.w["attention.score"] @ value)
        exponentials = [np.exp(energy - max(energies)) for energy in energies]  # eq. 5
        return np.array([value / sum(exponentials) for value in exponentials])

    def step(self, word: int, regions: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array, Array]:
        """One word: logits, weights, hidden, cell."""
        w = self.w
        weights = self.attend(regions, hidden)
        context = sum(weight * region for weight, region in zip(weights, regions, strict=True))
        from_hidden = w["from_hidden.weight"] @ hidden + w["from_hidden.bias"]
        size, channels = len(w["attention.score"]), regions.shape[1]
        if self.gate:  # section 4.2.1
            context = sigmoid(from_hidden[size : size + channels]) * context
        gates = (
            from_hidden[-4 * len(hidden) :]
            + w["from_word.weight"] @ w["embedding.weight"][word]
            + w["from_context.weight"] @ context
            + w["from_context.bias"]
        )
        enter, forget, leave, candidate = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)  # eq. 1-3
        hidden = sigmoid(leave) * np.tanh(cell)
        seen = w["output_state.weight"] @ np.concatenate((hidden, context)) + w["output_state.bias"]
        output = np.tanh(w["embedding.weight"][word] + seen)  # eq. 7
        return w["output.weight"] @ output + w["output.bias"], weights, hidden, cell

    def caption(self, regions: Array, words: list[int]) -> tuple[list[Array], list[Array]]:
        """Logits and weights at each of the words, START included, the last one not."""
        regions = self.regions(regions)
        hidden, cell = self.initial(regions)
        logits, weights = [], []
        for word in words[:-1]:
            scores, attention, hidden, cell = self.step(word, regions, hidden, cell)
            logits.append(scores)
            weights.append(attention)
        return logits, weights


def log_softmax(logits: Array) -> Array:
    top = logits.max()
    result: Array = logits - top - np.log(np.exp(logits - top).sum())
    return result
