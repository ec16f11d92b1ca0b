"""A decoder that is written as one step and differentiated by autograd.

Owns the way from a step to the protocol: given captions unrolled word by word, all words of a product together where
no step needs the one before; one word further in a search. Does not know what a step computes. A decoder file gives
four functions: `begin`, `given`, `advance` and `scored`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.captioners.captioner import Captioner, DecoderShape, Output, State, dropped
from pipeline.captioners.looking import Looking
from pipeline.captioners.rows import Rows, Unrolled
from pipeline.captioners.state import Remembered

Memory = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """A word of n captions.

    Attributes:
        seen: (n, D), what the next word is scored from.
        attention: (n, R), the weights behind it.
        memory: (n, ..) each, what is remembered.
        extras: (n,) each, what only this decoder has.
    """

    seen: Tensor
    attention: Tensor
    memory: Memory
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Stepwise(Captioner):
    """Embeds words, and lets a step do the rest.

    Args:
        shape: the sizes that every decoder has.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.embedding_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    @abstractmethod
    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Any, Memory]:
        """What the captions of an image share, an `OfImages`, and their memory before the first word, (B, ..) each.

        Args:
            regions: (B, N, C), cells if the decoder looks through a pooling.
            generator: as `forward` has it; None in a search and in validation.
        """

    def given(self, words: Tensor) -> Tensor:
        """What words bring to their steps, for all words at once: (M, E) to (M, ..)."""
        return words

    @abstractmethod
    def advance(self, look: Any, given: Tensor, memory: Memory) -> Step:
        """One word of the first n captions.

        Args:
            look: what `looking` made of what they share.
            given: (n, ..), of the words just said.
            memory: (n, ..) each.
        """

    @abstractmethod
    def scored(self, seen: Tensor) -> Tensor:
        """The words' scores, for all words at once: (M, D) to (M, V)."""

    def shown(self, step: Step) -> Tensor:
        """The attention of n captions as `Captioner.step` gives it; the step's unless a decoder says otherwise."""
        return step.attention

    def looking(self, shared: Any, rows: Rows) -> Any:
        """How captions look at what they share; additive attention unless a decoder says otherwise."""
        return Looking(shared, rows)

    def start(self, regions: Tensor) -> Remembered:
        shared, memory = self.begin(regions, None)
        return Remembered.of(shared, memory)

    @torch.no_grad()
    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, Remembered]:
        assert isinstance(state, Remembered)
        look = self.looking(state.shared, state.rows)
        step = self.advance(look, self.given(self.embedding(words)), state.memory)
        return self.scored(step.seen), self.shown(step), state._replace(memory=step.memory)

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        unrolled = Unrolled.of(lengths, regions.device)
        given = self.given(dropped(self.embedding(unrolled.take(captions)), self.dropout, generator))
        steps = self._unroll(regions, unrolled, given, generator)
        seen = torch.cat([step.seen for step in steps])[unrolled.by_caption()]
        attention, *extras = (
            unrolled.lay_out(torch.cat(parts), captions.shape[1])
            for parts in zip(*([step.attention, *_columns(step)] for step in steps), strict=True)
        )
        names = steps[0].extras
        return Output(
            self.scored(dropped(seen, self.dropout, generator)),
            attention,
            {name: value[..., 0] for name, value in zip(names, extras, strict=True)},
        )

    def _unroll(
        self, regions: Tensor, unrolled: Unrolled, given: Tensor, generator: torch.Generator | None
    ) -> list[Step]:
        shared, memory = self.begin(regions, generator)
        # Going back, indexing would add up an image's captions in the order that threads come; selecting does not.
        memory = tuple(kept.index_select(0, unrolled.rows.image) for kept in memory)
        look = self.looking(shared, unrolled.rows)
        steps = []
        # Split at once, and nothing cut that stays whole: going back, each slice fills zeros as large as all it is of.
        for count, own in zip(unrolled.counts, given.split(unrolled.counts), strict=True):
            left = tuple(kept if len(kept) == count else kept[:count] for kept in memory)
            step = self.advance(look, own, left)
            memory = step.memory
            steps.append(step)
        return steps


def _columns(step: Step) -> list[Tensor]:
    return [value[:, None] for value in step.extras.values()]
