"""The soft-attention decoder of Show, Attend and Tell (Xu et al. 2015): attention, gate, LSTM, deep output.

Owns its arithmetic and its options. Does not know how it is trained or searched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.captioners.attention import Activation, AdditiveAttention
from pipeline.captioners.captioner import (
    Captioner,
    DecoderShape,
    Output,
    State,
    dropped,
    gathered,
    padded,
    regrouped,
    spread,
)
from pipeline.captioners.linear import WordLinear


@dataclass(frozen=True)
class SoftOptions:
    """`train.decoder_options` of the soft decoder.

    Attributes:
        activation: of the attention.
        gate: whether a sigmoid gate scales the context (beta, section 4.2.1).
        normalise: whether each region is layer-normalised first.
        tie: whether the words' scores use the embedding's weights.
    """

    activation: Activation
    gate: bool
    normalise: bool
    tie: bool


class SoftState(NamedTuple):
    """B images with K captions each, between two words; N = B x K."""

    regions: Tensor  # (B, R, C)
    keys: Tensor  # (B, R, A)
    hidden: Tensor  # (B, K, H)
    cell: Tensor  # (B, K, H)

    def select(self, rows: Tensor) -> Self:
        images, captions = regrouped(rows, self.hidden.shape[1])
        size = (len(images), captions)
        regions, keys = self.regions, self.keys
        if not torch.equal(images, torch.arange(len(regions), device=rows.device)):
            regions, keys = regions[images], keys[images]
        return self._replace(
            regions=regions,
            keys=keys,
            hidden=self.hidden.flatten(0, 1)[rows].unflatten(0, size),
            cell=self.cell.flatten(0, 1)[rows].unflatten(0, size),
        )


class SoftCaptioner(Captioner):
    """Soft attention, LSTM, deep output: logits = L_o tanh(E y + L_h h + L_z z) (eq. 7, with tanh)."""

    def __init__(self, shape: DecoderShape, options: SoftOptions) -> None:
        super().__init__()
        embedding, hidden, channels = shape.embedding_size, shape.hidden_size, shape.channels
        self.dropout = shape.dropout
        self.normalise = nn.LayerNorm(channels, elementwise_affine=False) if options.normalise else nn.Identity()
        self.embedding = nn.Embedding(shape.vocabulary_size, embedding)
        self.attention = AdditiveAttention(
            channels=channels, attention_size=shape.attention_size, activation=options.activation
        )
        self.initial = nn.Linear(channels, 2 * hidden)
        # All that a step takes from the state before it, in one product: query, gate (beta), and the LSTM's share.
        self.parts = (shape.attention_size, channels if options.gate else 0, 4 * hidden)
        self.from_word = nn.Linear(embedding, 4 * hidden, bias=False)
        self.from_hidden = WordLinear(hidden, sum(self.parts))
        self.from_context = WordLinear(channels, 4 * hidden)
        self.output_state = nn.Linear(hidden + channels, embedding)
        self.output = nn.Linear(embedding, shape.vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if options.tie:
            self.output.weight = self.embedding.weight

    def start(self, regions: Tensor) -> SoftState:
        regions = self.normalise(regions).to(regions.dtype)  # on a GPU autocast would leave them in float32
        hidden, cell = torch.tanh(self.initial(regions.mean(1))).chunk(2, -1)
        return SoftState(regions, self.attention.keys(regions), hidden[:, None], cell[:, None])

    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, SoftState]:
        assert isinstance(state, SoftState)
        word = self.embedding(words).unflatten(0, state.hidden.shape[:2])
        state, context, weights = self._next(state, self.from_word(word), self.from_hidden, self.from_context)
        logits = self.output(torch.tanh(word + self.output_state(torch.cat((state.hidden, context), -1))))
        return logits.flatten(0, 1), weights.flatten(0, 1), state

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        size = captions.shape[:2]
        spoken = self.spoken(lengths, int(lengths.max()) - 1).to(captions.device)
        words = dropped(self.embedding(captions[:, :, : spoken.shape[2]][spoken]), self.dropout, generator)
        from_words = spread(self.from_word(words), spoken).unbind(2)
        from_hidden, from_context = self.from_hidden.over_words(), self.from_context.over_words()
        start = self.start(regions)
        state = start._replace(hidden=start.hidden.expand(-1, size[1], -1), cell=start.cell.expand(-1, size[1], -1))
        seen, weights = [], []
        for time, (images, columns) in enumerate(self.alive(lengths)):
            state = SoftState(
                state.regions[:images],
                state.keys[:images],
                state.hidden[:images, :columns],
                state.cell[:images, :columns],
            )
            state, context, attention = self._next(
                state, from_words[time][:images, :columns], from_hidden, from_context
            )
            seen.append(padded(torch.cat((state.hidden, context), -1), *size))
            weights.append(padded(attention, *size))
        features = torch.tanh(words + self.output_state(gathered(torch.stack(seen, 2), spoken)))
        logits = self.output(dropped(features, self.dropout, generator))
        return Output(logits, torch.stack(weights, 2) * spoken[..., None])

    def _next(
        self,
        state: SoftState,
        from_word: Tensor,
        from_hidden: Callable[[Tensor], Tensor],
        from_context: Callable[[Tensor], Tensor],
    ) -> tuple[SoftState, Tensor, Tensor]:
        """One step of (B, K) captions: the state after it, the context, the attention."""
        queries, gate, gates = from_hidden(state.hidden).split(self.parts, -1)
        context, weights = self.attention(state.keys, state.regions, queries)
        if self.parts[1]:
            context = torch.sigmoid(gate) * context
        enter, forget, leave, candidate = (from_word + gates + from_context(context)).chunk(4, -1)
        cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(enter) * torch.tanh(candidate)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        return state._replace(hidden=hidden, cell=cell), context, weights
