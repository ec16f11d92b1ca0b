"""Adaptive attention as the paper writes it (Lu et al. 2017): one caption, one word, one region at a time."""

from typing import Any

import numpy as np

from tests.captioners.reference import Array, sigmoid
from tests.captioners.reference_embedded import PlainEmbedded, lstm, softmax


class PlainAdaptive(PlainEmbedded):
    def initial(self, regions: Array) -> tuple[Array, ...]:
        mean = sum(regions) / len(regions)
        whole = np.maximum(self.w["whole.weight"] @ mean + self.w["whole.bias"], 0)
        return 0 * whole, 0 * whole, self.w["from_whole.weight"] @ whole

    def step(
        self, word: int, regions: Array, before: Array, cell: Array, from_whole: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        logits, attention, hidden, cell, _ = self.said(word, regions, before, cell, from_whole)
        return logits, attention[:-1], hidden, cell, from_whole

    def said(
        self, word: int, regions: Array, before: Array, cell: Array, from_whole: Array
    ) -> tuple[Array, Array, Array, Array, np.floating[Any]]:
        """Logits, attention over regions and, last, the sentinel (eq. 12); state, memory and beta."""
        w, size = self.w, len(before)
        x = w["from_word.weight"] @ w["embedding.weight"][word] + from_whole
        hidden, cell = lstm(x[: 4 * size] + w["from_hidden.weight"] @ before + w["from_hidden.bias"], cell)
        gate = sigmoid(x[4 * size :] + w["gate.weight"] @ before + w["gate.bias"])  # eq. 9
        sentinel = gate * np.tanh(cell)  # eq. 10
        query = w["query.weight"] @ hidden
        embedded = self.embedded(regions)
        energies = self.energies(embedded, query)  # eq. 6
        own = self.energy(w["key.weight"] @ sentinel + w["key.bias"] + query)
        attention = softmax([*energies, own])  # eq. 12
        beta = attention[-1]
        seen = sum(weight * region for weight, region in zip(softmax(energies), embedded, strict=True))  # eq. 7, 8
        mixed = beta * sentinel + (1 - beta) * seen  # eq. 11
        return w["output.weight"] @ (mixed + hidden) + w["output.bias"], attention, hidden, cell, beta  # eq. 13
