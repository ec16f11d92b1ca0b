"""A caption that was found, and the way back to it through the steps of a search.

Owns `Hypothesis` and the trace-back of all images at once. Does not know how captions are chosen.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """One caption.

    Attributes:
        words: ids, without START and END.
        log_probability: the sum over its words, and END if it finished.
        attention: (len(words), R) float32, the weights behind each word, as `Captioner.step` gives them.
        finished: whether it said END; if not, no caption of the beam did within the words allowed.
    """

    words: tuple[int, ...]
    log_probability: float
    attention: NDArray[np.float32]
    finished: bool


class Trace:
    """What each step leaves for the way back, of all images, those that are done included.

    Args:
        images: B.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, image: Tensor, parents: Tensor, words: Tensor, attention: Tensor) -> None:
        """Keep a step.

        Args:
            image: (N,) int64, which images go on, ascending.
            parents: (N, beam) int64, which caption of the step before each one continues.
            words: (N, beam) int64, the word it says.
            attention: (N, captions of the step before, R).
        """
        self.steps.append((self._all(image, parents), self._all(image, words), self._all(image, attention)))

    def _all(self, image: Tensor, rows: Tensor) -> Tensor:
        if len(image) == self.images:
            return rows
        return rows.new_zeros(self.images, *rows.shape[1:]).index_copy(0, image, rows)

    def back(self, lengths: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Follow one caption of every image back to its first word.

        Args:
            lengths: (B,) int64, words said.
            columns: (B,) int64, the caption's place in the beam after its last word.

        Returns:
            Words (B, T) and attention (B, T, R), T the steps kept; what lies past a caption's length has no meaning.
        """
        words, weights = [], []
        every, column = torch.arange(self.images, device=columns.device), columns
        for time in reversed(range(len(self.steps))):
            parents, said, attention = self.steps[time]
            parent = parents[every, column]
            words.append(said[every, column])
            weights.append(attention[every, parent])
            column = torch.where(time < lengths, parent, column)
        return torch.stack(words[::-1], 1), torch.stack(weights[::-1], 1)


def hypotheses(words: Tensor, lengths: Tensor, logs: Tensor, attention: Tensor, finished: Tensor) -> list[Hypothesis]:
    """Bring captions from the device: words (B, T), lengths, log p and finished (B,), attention (B, T, R)."""
    weights = attention.float().cpu().numpy()
    told = zip(words.tolist(), lengths.tolist(), logs.tolist(), finished.tolist(), weights, strict=True)
    return [Hypothesis(tuple(said[:size]), log, own[:size].copy(), end) for said, size, log, end, own in told]
