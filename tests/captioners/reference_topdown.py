"""Top-down attention as the paper writes it (Anderson et al. 2018): one caption, one word, one region at a time."""

import numpy as np

from tests.captioners.reference import Array
from tests.captioners.reference_embedded import PlainEmbedded, lstm, softmax


class PlainTopDown(PlainEmbedded):
    def initial(self, regions: Array) -> tuple[Array, ...]:
        nothing = np.zeros(len(self.w["attention.embed.bias"]))
        return nothing, nothing, nothing, nothing

    def step(self, word: int, regions: Array, h1: Array, c1: Array, h2: Array, c2: Array) -> tuple[Array, ...]:
        w, size = self.w, len(h1)
        embedded = self.embedded(regions)
        mean = sum(embedded) / len(embedded)
        from_h1, from_h2 = np.split(w["from_states.weight"], 2, axis=1)
        first = w["from_word.weight"] @ w["embedding.weight"][word] + w["from_whole.weight"] @ mean
        h1, c1 = lstm(first + w["from_states.bias"] + from_h1 @ h1 + from_h2 @ h2, c1)  # eq. 2
        query, own = np.split(w["from_looking.weight"] @ h1 + w["from_looking.bias"], [-4 * size])
        weights = softmax(self.energies(embedded, query))  # eq. 3, 4
        seen = sum(weight * region for weight, region in zip(weights, embedded, strict=True))  # eq. 5
        from_seen, from_h2 = np.split(w["from_seen.weight"], 2, axis=1)
        h2, c2 = lstm(own + from_seen @ seen + from_h2 @ h2 + w["from_seen.bias"], c2)  # eq. 6
        return w["output.weight"] @ h2 + w["output.bias"], weights, h1, c1, h2, c2  # eq. 7
