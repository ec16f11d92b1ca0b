"""The step of Show, Attend and Tell (Xu et al. 2015) in parts, for decoders that differ from the soft one in a part.

Owns the weights that they share and the order of a step: attention, gate, recurrence, deep output. Does not know how
attention becomes a context, nor which recurrence there is. The soft decoder itself (`soft.py`) is written apart, with
its gradients by hand.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.late import Late
from pipeline.captioners.looking import Looking
from pipeline.captioners.projection import AdditiveAttention, mean_region
from pipeline.captioners.rows import Rows
from pipeline.captioners.soft import SoftOptions
from pipeline.captioners.stepwise import Memory, Step, Stepwise


@dataclass(frozen=True)
class Saw:
    """What n captions saw.

    Attributes:
        context: (n, C).
        attention: (n, R), to be shown and to be penalised.
        extras: (n,) each, what only this decoder has.
    """

    context: Tensor
    attention: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


class Look(NamedTuple):
    """What the captions of a batch look at, and the products that each of their words takes.

    Attributes:
        regions: as `ShowAttendTell.see` takes them.
        from_hidden: (n, H) to (n, A + C + gates x H).
        from_context: (n, C) to (n, gates x H).
        output_state: (n, H + C) to (n, E).
    """

    regions: Any
    from_hidden: Late
    from_context: Late
    output_state: Late


class ShowAttendTell(Stepwise):
    """Attention (eq. 4-6), gate (section 4.2.1), a recurrence, deep output (eq. 7, with tanh).

    The weights have the soft decoder's names.

    Args:
        shape: the sizes that every decoder has.
        options: the soft decoder's.
        gates: of the recurrence; 4 of an LSTM, 3 of a GRU.
        states: how many the mean region begins: 2 of an LSTM, the hidden one first; 1 of a GRU.
    """

    def __init__(self, shape: DecoderShape, options: SoftOptions, *, gates: int, states: int) -> None:
        super().__init__(shape)
        embedding, hidden, channels = shape.embedding_size, shape.hidden_size, shape.channels
        self.states = states
        self.parts = [shape.attention_size, channels if options.gate else 0, gates * hidden]
        self.attention = AdditiveAttention(
            channels=channels,
            size=shape.attention_size,
            activation=options.activation,
            normalise=options.normalise,
        )
        self.initial = nn.Linear(channels, states * hidden)
        # All that a step takes from the state before it, in one product: query, gate (beta), the recurrence's share.
        self.from_word = nn.Linear(embedding, gates * hidden, bias=False)
        self.from_hidden = nn.Linear(hidden, sum(self.parts))
        self.from_context = nn.Linear(channels, gates * hidden)
        self.output_state = nn.Linear(hidden + channels, embedding)
        self.output = nn.Linear(embedding, shape.vocabulary_size)
        if options.tie:
            self.output.weight = self.embedding.weight

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Any, Memory]:
        shared = self.attention.share(regions, self.pooling)
        first = torch.tanh(self.initial(mean_region(shared)))
        return shared, first.to(shared.score.dtype).chunk(self.states, -1)

    def given(self, words: Tensor) -> Tensor:
        """The recurrence's share of words, and the words, which are scored too: (M, gates x H + E)."""
        share = self.from_word(words)
        return torch.cat((share, words.to(share.dtype)), -1)

    def advance(self, look: Look, given: Tensor, memory: Memory) -> Step:
        share, word = given.split([self.parts[2], given.shape[1] - self.parts[2]], -1)
        query, gate, own = look.from_hidden(memory[0]).split(self.parts, -1)
        saw = self.see(look.regions, query)
        context = saw.context * torch.sigmoid(gate) if self.parts[1] else saw.context
        memory = self.remember(share, own, look.from_context(context), memory)
        said = torch.tanh(word + look.output_state(torch.cat((memory[0].to(context.dtype), context), -1)))
        return Step(said, saw.attention, memory, saw.extras)

    def looking(self, shared: Any, rows: Rows) -> Look:
        layers = (self.from_hidden, self.from_context, self.output_state)
        return Look(self.regions(shared, rows), *(Late(layer, shared.features) for layer in layers))

    def regions(self, shared: Any, rows: Rows) -> Any:
        """How captions look at what they share."""
        return Looking(shared, rows)

    @abstractmethod
    def see(self, look: Any, query: Tensor) -> Saw:
        """What queries (n, A), their bias included, make of the regions."""

    @abstractmethod
    def remember(self, from_word: Tensor, from_hidden: Tensor, from_context: Tensor, memory: Memory) -> Memory:
        """The memory after a word, the hidden state (n, H) first, from its (n, gates x H) products."""

    def scored(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.output(seen)
        return logits
