"""Additive attention over embedded regions, one region at a time: what three decoders have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.captioners.reference import Array, normalised


class PlainEmbedded:
    def __init__(self, weights: dict[str, Array], options: Mapping[str, Any]) -> None:
        self.w, self.options = weights, options

    def regions(self, regions: Array) -> Array:
        return normalised(regions) if self.options["normalise"] else regions

    def embedded(self, regions: Array) -> list[Array]:
        weight, bias = self.w["attention.embed.weight"], self.w["attention.embed.bias"]
        return [np.maximum(weight @ region + bias, 0) for region in regions]

    def energy(self, total: Array) -> np.floating[Any]:
        value: Array = np.tanh(total) if self.options["activation"] == "tanh" else np.maximum(total, 0)
        energy: np.floating[Any] = np.dot(self.w["attention.additive.score"], value)
        return energy

    def energies(self, embedded: list[Array], query: Array) -> list[np.floating[Any]]:
        key, bias = self.w["attention.additive.key.weight"], self.w["attention.additive.key.bias"]
        return [self.energy(key @ region + bias + query) for region in embedded]


def softmax(values: list[np.floating[Any]]) -> Array:
    exponentials = [np.exp(value - max(values)) for value in values]
    return np.array([value / sum(exponentials) for value in exponentials])


def lstm(gates: Array, cell: Array) -> tuple[Array, Array]:
    """Hidden state and cell of gates before sigmoid and tanh: enter, forget, leave, candidate."""
    enter, forget, leave, candidate = np.split(gates, 4)
    cell = cell / (1 + np.exp(-forget)) + np.tanh(candidate) / (1 + np.exp(-enter))
    return np.tanh(cell) / (1 + np.exp(-leave)), cell
