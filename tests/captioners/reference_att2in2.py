"""Att2in2 as its source writes it (Rennie et al. 2017): one caption, one word, one region at a time."""

import numpy as np

from tests.captioners.reference import Array, sigmoid
from tests.captioners.reference_embedded import PlainEmbedded, softmax


class PlainAtt2in2(PlainEmbedded):
    def initial(self, regions: Array) -> tuple[Array, Array]:
        nothing = np.zeros(len(self.w["attention.embed.bias"]))
        return nothing, nothing

    def step(self, word: int, regions: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array, Array]:
        w, size = self.w, len(hidden)
        query, own = np.split(w["from_hidden.weight"] @ hidden + w["from_hidden.bias"], [-5 * size])
        embedded = self.embedded(regions)
        weights = softmax(self.energies(embedded, query))
        seen = sum(weight * region for weight, region in zip(weights, embedded, strict=True))
        parts = own + w["from_word.weight"] @ np.maximum(w["embedding.weight"][word], 0)
        enter, forget, leave, first, second = np.split(parts, 5)
        from_seen = w["from_seen.weight"] @ seen + w["from_seen.bias"]
        candidate = [max(pair) for pair in zip(first + from_seen[:size], second + from_seen[size:], strict=True)]
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.array(candidate)
        hidden = sigmoid(leave) * np.tanh(cell)
        return w["output.weight"] @ hidden + w["output.bias"], weights, hidden, cell
