"""Top-down attention (Anderson et al. 2018, "Bottom-Up and Top-Down Attention", section 3.2): two LSTMs.

Owns its weights and its step. Does not know how it is trained or searched.

The regions v_i of the paper are the embedded ones here, in the attention and in their mean alike. The authors' code
(peteanderson80/Up-Down-Captioner) starts weights at N(0, 0.01) and the forget gates' biases at 1; this does not.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.captioners.attention import Shared
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.embedded import EmbeddedAttention, EmbeddedOptions
from pipeline.captioners.late import Late
from pipeline.captioners.looking import Looking
from pipeline.captioners.lstm import lstm_step
from pipeline.captioners.projection import mean_region
from pipeline.captioners.rows import Rows
from pipeline.captioners.stepwise import Memory, Step, Stepwise


class _Looking(NamedTuple):
    at_regions: Looking
    from_states: Late
    from_looking: Late
    from_seen: Late


class TopDownCaptioner(Stepwise):
    """An LSTM that decides where to look, and one that speaks of what was seen."""

    def __init__(self, shape: DecoderShape, options: EmbeddedOptions) -> None:
        super().__init__(shape)
        size, self.attention_size = shape.hidden_size, shape.attention_size
        self.size = size
        self.attention = EmbeddedAttention(shape, options)
        # The attention LSTM, of [h2; v; W_e word] and its own state h1 (eq. 2)
        self.from_word = nn.Linear(shape.embedding_size, 4 * size, bias=False)
        self.from_whole = nn.Linear(size, 4 * size, bias=False)
        self.from_states = nn.Linear(2 * size, 4 * size)  # [h1; h2]
        # The language LSTM, of [v^; h1] (eq. 6) and its own state h2; the query W_ha h1 first
        self.from_looking = nn.Linear(size, shape.attention_size + 4 * size)  # h1
        self.from_seen = nn.Linear(2 * size, 4 * size)  # [v^; h2]
        self.output = nn.Linear(size, shape.vocabulary_size)

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Shared, Memory]:
        """Regions, and what their mean brings to every word; both LSTMs start at zero."""
        shared = self.attention.share(self.attention.regions(regions, self.pooling), generator)
        whole = self.from_whole(mean_region(shared))
        hidden = shared.features.new_zeros(len(regions), self.size)
        cell = hidden.to(shared.score.dtype)
        return shared, (hidden, cell, hidden, cell, whole)

    def given(self, words: Tensor) -> Tensor:
        share: Tensor = self.from_word(words)  # (M, 4H)
        return share

    def looking(self, shared: Shared, rows: Rows) -> _Looking:
        maps = (Late(linear, shared.features) for linear in (self.from_states, self.from_looking, self.from_seen))
        return _Looking(Looking(shared, rows), *maps)

    def advance(self, look: _Looking, given: Tensor, memory: Memory) -> Step:
        looking, looking_cell, speaking, speaking_cell, whole = memory
        states = look.from_states(torch.cat((looking, speaking), -1))
        looking, looking_cell = lstm_step(given, states, whole, looking_cell)
        query, own = look.from_looking(looking).tensor_split((self.attention_size,), -1)
        seen, weights, _ = look.at_regions(query)  # eq. 3-5
        context = look.from_seen(torch.cat((seen, speaking), -1))
        speaking, speaking_cell = lstm_step(own, context, torch.zeros_like(context), speaking_cell)
        return Step(speaking, weights, (looking, looking_cell, speaking, speaking_cell, whole))

    def scored(self, seen: Tensor) -> Tensor:
        """W_p h2 + b_p (eq. 7)."""
        scores: Tensor = self.output(seen)
        return scores
