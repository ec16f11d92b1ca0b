"""GRUs as their sources write them: one caption, one word, one region at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.captioners.reference import Array, PlainSoft, normalised, sigmoid


def gru(from_input: Array, from_hidden: Array, hidden: Array) -> Array:
    """Cho et al. 2014 as Keras has it with `reset_after`; parts are reset, update and candidate."""
    size = len(hidden)
    reset = sigmoid(from_input[:size] + from_hidden[:size])
    update = sigmoid(from_input[size : 2 * size] + from_hidden[size : 2 * size])
    candidate = np.tanh(from_input[2 * size :] + reset * from_hidden[2 * size :])
    after: Array = update * hidden + (1 - update) * candidate
    return after


class PlainGru:
    """The tutorial's decoder: GRU, `Attention()`, `Add`, `LayerNormalization`, `Dense`."""

    def __init__(self, weights: dict[str, Array], options: Mapping[str, Any]) -> None:
        self.w, self.options = weights, options

    def regions(self, regions: Array) -> Array:
        return normalised(regions) if self.options["normalise"] else regions

    def initial(self, regions: Array) -> tuple[Array]:
        return (np.zeros_like(self.w["key.bias"]),)

    def step(self, word: int, regions: Array, hidden: Array) -> tuple[Array, Array, Array]:
        """One word: logits, weights, hidden."""
        w = self.w
        hidden = gru(
            w["from_word.weight"] @ w["embedding.weight"][word] + w["from_word.bias"],
            w["from_hidden.weight"] @ hidden + w["from_hidden.bias"],
            hidden,
        )
        keys = [np.maximum(w["key.weight"] @ region + w["key.bias"], 0) for region in regions]
        energies = [key @ hidden for key in keys]
        exponentials = [np.exp(energy - max(energies)) for energy in energies]
        weights = np.array([value / sum(exponentials) for value in exponentials])
        total = hidden + sum(weight * key for weight, key in zip(weights, keys, strict=True))
        total = (total - total.mean()) / np.sqrt(total.var() + 1e-3) * w["norm.weight"] + w["norm.bias"]
        return w["output.weight"] @ total + w["output.bias"], weights, hidden


class PlainSoftGru(PlainSoft):
    """Xu et al. 2015 with a GRU."""

    def initial(self, regions: Array) -> tuple[Array]:  # type: ignore[override]
        mean = sum(regions) / len(regions)
        return (np.tanh(self.w["initial.weight"] @ mean + self.w["initial.bias"]),)

    def step(self, word: int, regions: Array, hidden: Array) -> tuple[Array, Array, Array]:  # type: ignore[override]
        """One word: logits, weights, hidden."""
        w, size = self.w, 3 * len(hidden)
        weights = self.attend(regions, hidden)
        context = sum(weight * region for weight, region in zip(weights, regions, strict=True))
        from_hidden = w["from_hidden.weight"] @ hidden + w["from_hidden.bias"]
        if self.gate:
            context = sigmoid(from_hidden[-size - regions.shape[1] : -size]) * context
        from_input = w["from_word.weight"] @ w["embedding.weight"][word] + w["from_context.weight"] @ context
        hidden = gru(from_input + w["from_context.bias"], from_hidden[-size:], hidden)
        seen = w["output_state.weight"] @ np.concatenate((hidden, context)) + w["output_state.bias"]
        output = np.tanh(w["embedding.weight"][word] + seen)
        return w["output.weight"] @ output + w["output.bias"], weights, hidden
