"""Att2in (Rennie et al. 2017, "Self-critical Sequence Training", section 3): what was seen enters the cell alone.

Owns its weights and its step. Does not know how it is trained or searched.

This is att2in2 of ruotianluo/self-critical.pytorch (`Att2in2Core` of `AttModel.py`), whose published scores are those
to compare with: it differs from the paper in that regions and words are embedded with a ReLU.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.captioners.attention import Shared
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.embedded import EmbeddedAttention, EmbeddedOptions
from pipeline.captioners.late import Late
from pipeline.captioners.looking import Looking
from pipeline.captioners.rows import Rows
from pipeline.captioners.stepwise import Memory, Step, Stepwise


class _Looking(NamedTuple):
    at_regions: Looking
    from_hidden: Late
    from_seen: Late


class Att2in2Captioner(Stepwise):
    """An LSTM whose candidate is the greater of two (maxout), and where what was seen enters the candidate only.

    Where (.., 5H) stands, the parts are enter, forget, leave and the two candidates.
    """

    def __init__(self, shape: DecoderShape, options: EmbeddedOptions) -> None:
        super().__init__(shape)
        size, self.attention_size = shape.hidden_size, shape.attention_size
        self.size = size
        self.attention = EmbeddedAttention(shape, options)
        self.from_word = nn.Linear(shape.embedding_size, 5 * size, bias=False)
        self.from_hidden = nn.Linear(size, shape.attention_size + 5 * size)  # the query first
        self.from_seen = nn.Linear(size, 2 * size)
        self.output = nn.Linear(size, shape.vocabulary_size)

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Shared, Memory]:
        """Regions; state and cell start at zero."""
        shared = self.attention.share(self.attention.regions(regions, self.pooling), generator)
        hidden = shared.features.new_zeros(len(regions), self.size)
        return shared, (hidden, hidden.to(shared.score.dtype))

    def given(self, words: Tensor) -> Tensor:
        share: Tensor = self.from_word(torch.relu(words))  # (M, 5H)
        return share

    def looking(self, shared: Shared, rows: Rows) -> _Looking:
        maps = (Late(linear, shared.features) for linear in (self.from_hidden, self.from_seen))
        return _Looking(Looking(shared, rows), *maps)

    def advance(self, look: _Looking, given: Tensor, memory: Memory) -> Step:
        hidden, cell = memory
        query, own = look.from_hidden(hidden).tensor_split((self.attention_size,), -1)
        seen, weights, _ = look.at_regions(query)
        gates, candidates = (given + own).tensor_split((3 * self.size,), -1)
        enter, forget, leave = torch.sigmoid(gates).chunk(3, -1)
        candidate = torch.maximum(*(candidates + look.from_seen(seen)).chunk(2, -1))
        cell = forget * cell + enter * candidate
        hidden = (leave * torch.tanh(cell)).to(hidden.dtype)
        return Step(hidden, weights, (hidden, cell))

    def scored(self, seen: Tensor) -> Tensor:
        scores: Tensor = self.output(seen)
        return scores
