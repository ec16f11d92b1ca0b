"""The soft-attention decoder of Show, Attend and Tell (Xu et al. 2015): attention, gate, LSTM, deep output.

Owns its weights, its options, and what is done once an image or once for all words. Does not know how it is trained
or searched.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.captioners.attention import Activation, Shared
from pipeline.captioners.captioner import Captioner, DecoderShape, Output, State, dropped
from pipeline.captioners.projection import AdditiveAttention, mean_region
from pipeline.captioners.rows import Unrolled
from pipeline.captioners.state import Remembered
from pipeline.captioners.through_time import Trace, Weights, advance, unroll


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


class SoftCaptioner(Captioner):
    """Soft attention, LSTM, deep output: logits = L_o tanh(E y + L_h h + L_z z) (eq. 7, with tanh)."""

    def __init__(self, shape: DecoderShape, options: SoftOptions) -> None:
        super().__init__()
        embedding, hidden, channels = shape.embedding_size, shape.hidden_size, shape.channels
        self.dropout, self.attention_size = shape.dropout, shape.attention_size
        self.gated = channels if options.gate else 0
        self.embedding = nn.Embedding(shape.vocabulary_size, embedding)
        self.attention = AdditiveAttention(
            channels=channels,
            size=shape.attention_size,
            activation=options.activation,
            normalise=options.normalise,
        )
        self.initial = nn.Linear(channels, 2 * hidden)
        # All that a step takes from the state before it, in one product: query, gate (beta), and the LSTM's share.
        self.from_word = nn.Linear(embedding, 4 * hidden, bias=False)
        self.from_hidden = nn.Linear(hidden, shape.attention_size + self.gated + 4 * hidden)
        self.from_context = nn.Linear(channels, 4 * hidden)
        self.output_state = nn.Linear(hidden + channels, embedding)
        self.output = nn.Linear(embedding, shape.vocabulary_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if options.tie:
            self.output.weight = self.embedding.weight

    def start(self, regions: Tensor) -> Remembered:
        shared, weights, hidden, cell = self._begin(regions)
        return Remembered.of(shared, (hidden, cell), weights)

    @torch.no_grad()
    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, Remembered]:
        assert isinstance(state, Remembered)
        (hidden, cell), weights = state.memory, state.constants
        word, trace = self.embedding(words), Trace.empty(len(words), state.shared, weights)
        from_word = self._from_words(word).to(hidden.dtype)
        with torch.autocast(words.device.type, enabled=False):
            advance(state.shared, weights, state.rows, hidden, cell, from_word, trace)
        logits = self.output(self._said(word, trace.hidden, trace.context))
        return logits, trace.weights, state._replace(memory=(trace.hidden, trace.cell))

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        unrolled = Unrolled.of(lengths, regions.device)
        words = dropped(self.embedding(unrolled.take(captions)), self.dropout, generator)
        shared, weights, hidden, cell = self._begin(regions)
        found = unroll(shared, weights, unrolled, hidden, cell, self._from_words(words))
        said = self._said(words, *found[:2])[unrolled.by_caption()]
        return Output(
            self.output(dropped(said, self.dropout, generator)), unrolled.lay_out(found[2], captions.shape[1])
        )

    def _begin(self, features: Tensor) -> tuple[Shared, Weights, Tensor, Tensor]:
        """What images share, the recurrent weights for features of that dtype, and the first states (B, H)."""
        shared = self.attention.share(features, self.pooling)
        first = torch.tanh(self.initial(mean_region(shared)))
        hidden, cell = first.tensor_split(2, -1)
        query, gate, _ = self.from_hidden.bias.split([self.attention_size, self.gated, 4 * hidden.shape[1]])
        weights = Weights(
            hidden=self.from_hidden.weight.to(features.dtype),
            context=self.from_context.weight.to(features.dtype),
            query_bias=query.contiguous(),
            gate_bias=gate.contiguous() if self.gated else None,
        )
        return shared, weights, hidden.to(features.dtype).contiguous(), cell.to(gate.dtype).contiguous()

    def _from_words(self, words: Tensor) -> Tensor:
        """The LSTM's share of words (M, E), with the biases that every word adds: (M, 4H)."""
        bias = self.from_context.bias + self.from_hidden.bias[self.attention_size + self.gated :]
        return functional.linear(words, self.from_word.weight, bias)

    def _said(self, words: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """What is scored, (M, E)."""
        return torch.tanh(words + self.output_state(torch.cat((hidden, context), -1)))
