"""The one protocol that every decoder follows; nothing else about a decoder is known elsewhere.

Owns `Captioner`, its `State` and its `Output`. Does not know how captions are searched, trained or scored, nor
where regions come from.

Shapes: B images, K captions an image, T words, R regions (rows x columns, row-major), C channels, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

PAD, START, END, UNKNOWN = 0, 1, 2, 3


class State(Protocol):
    """What a decoder remembers between two words of N unfinished captions."""

    def select(self, rows: Tensor) -> Self:
        """The state of the captions `rows`, (M,) int64, in that order; a caption may be taken more than once."""
        ...


@dataclass(frozen=True)
class Output:
    """What a decoder says of given captions.

    Attributes:
        logits: (B, K, T - 1, V), the scores of word t + 1 after the words up to t.
        attention: (B, K, T - 1, R), the weights behind each of them; they sum to 1 over R.
        extras: what only some decoders have, such as a sentinel's weight (B, K, T - 1).
    """

    logits: Tensor
    attention: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Captioner(torch.nn.Module):
    """A decoder: regions and the words so far in, scores of the next word and attention out."""

    def start(self, regions: Tensor) -> State:
        """The state before the first word.

        Args:
            regions: (N, R, C) float.
        """
        raise NotImplementedError

    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One word further.

        Args:
            words: (N,) int64, the word just said.
            state: of the same N captions.

        Returns:
            Logits (N, V), attention (N, R) and the next state.
        """
        raise NotImplementedError

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        """Score given captions, all words at once (teacher forcing).

        Args:
            regions: (B, R, C) float.
            captions: (B, K, T) int64, `START w1 .. wn END PAD ..`; a missing caption has length 0.
            lengths: (B, K) int64, words with START and END.
            generator: the source of dropout, on the regions' device; None switches dropout off.
        """
        raise NotImplementedError
