"""Adaptive attention (Lu et al. 2017, "Knowing When to Look"): a visual sentinel stands for not looking at all.

Owns its weights and its step. Does not know how it is trained or searched.

The paper's equations are followed. The authors' code (jiasenlu/AdaptiveAttention) has more layers than they: a ReLU
on embedded words, and one layer each on the state, on the sentinel, and on their sum with what was seen.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.captioners.attention import Shared
from pipeline.captioners.captioner import DecoderShape, dropped
from pipeline.captioners.embedded import EmbeddedAttention, EmbeddedOptions
from pipeline.captioners.late import Late
from pipeline.captioners.looking import Looking
from pipeline.captioners.lstm import lstm_step
from pipeline.captioners.rows import Rows, Unrolled
from pipeline.captioners.stepwise import Memory, Step, Stepwise


class AdaptiveCaptioner(Stepwise):
    """An LSTM that sees the whole image, and attention that looks at regions or at the LSTM's own memory.

    Attention is that over the regions (eq. 7), which sums to 1. `Output.extras["sentinel"]` is beta, (B, K, T' - 1),
    the sentinel's share of what a word is scored from: regions have (1 - beta) x attention of eq. 12, and that is what
    a search finds and shows.

    Where (.., 5H) stands, the first 4H are the LSTM's gates, and the rest is the sentinel's.
    """

    def __init__(self, shape: DecoderShape, options: EmbeddedOptions) -> None:
        super().__init__(shape)
        size = self.size = shape.hidden_size
        self.attention = EmbeddedAttention(shape, options)
        self.whole = nn.Linear(shape.channels, size)  # W_b
        self.from_word = nn.Linear(shape.embedding_size, 5 * size, bias=False)
        self.from_whole = nn.Linear(size, 5 * size, bias=False)
        self.from_hidden = nn.Linear(size, 4 * size)
        self.gate = nn.Linear(size, size)  # W_h of eq. 9
        self.query = nn.Linear(size, shape.attention_size, bias=False)  # W_g; the keys have a bias
        self.key = nn.Linear(size, shape.attention_size)  # W_s
        self.output = nn.Linear(size, shape.vocabulary_size)  # W_p

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Shared, Memory]:
        """Regions, and what the whole image, v^g = ReLU(W_b mean a), brings to every word; the LSTM starts at zero."""
        regions = self.attention.regions(regions, self.pooling)
        shared = self.attention.share(regions, generator)
        whole = dropped(torch.relu(self.whole(regions.mean(1))), self.dropout, generator)
        hidden = shared.features.new_zeros(len(regions), self.size)
        return shared, (hidden, hidden.to(shared.score.dtype), self.from_whole(whole))

    def given(self, words: Tensor) -> Tensor:
        share: Tensor = self.from_word(words)  # (M, 5H)
        return share

    def advance(self, look: Looking, given: Tensor, memory: Memory) -> Step:
        before, cell, whole = memory
        gates, gate = (given + whole).split((4 * self.size, self.size), -1)
        hidden, cell = _remember(gates, self.from_hidden(before), cell)
        step = self._see(look, gate, before, hidden, cell)
        return replace(step, memory=(hidden, cell, whole))

    def shown(self, step: Step) -> Tensor:
        return (1 - step.extras["sentinel"])[:, None] * step.attention

    def scored(self, seen: Tensor) -> Tensor:
        """W_p (c^ + h) (eq. 13)."""
        scores: Tensor = self.output(seen)
        return scores

    def _unroll(
        self, regions: Tensor, unrolled: Unrolled, given: Tensor, generator: torch.Generator | None
    ) -> list[Step]:
        """The LSTM does not depend on what was seen: first all its steps, then all words look at once.

        Where the kernels do not serve, a formula would hold the energies of all words: they look step by step there.
        """
        shared, memory = self.begin(regions, generator)
        images = np.concatenate([unrolled.rows.images_of(count) for count in unrolled.counts])
        words = Rows(images, len(shared), regions.device)
        gates, gate = (given + memory[2].index_select(0, words.image)).split((4 * self.size, self.size), -1)
        hidden, cell = (kept.index_select(0, unrolled.rows.image) for kept in memory[:2])
        from_hidden, trail = Late(self.from_hidden, shared.features), []
        for count, own in zip(unrolled.counts, gates.split(unrolled.counts), strict=True):
            before = hidden[:count]
            hidden, cell = _remember(own, from_hidden(before), cell[:count])
            trail.append((before, hidden, cell))
        if shared.record is not None:
            return [self._see(self.looking(shared, words), gate, *map(torch.cat, zip(*trail, strict=True)))]
        look = self.looking(shared, unrolled.rows)
        return [self._see(look, own, *kept) for own, kept in zip(gate.split(unrolled.counts), trail, strict=True)]

    def _see(self, look: Looking, gate: Tensor, before: Tensor, hidden: Tensor, cell: Tensor) -> Step:
        """What M words are scored from.

        The softmax over regions and sentinel (eq. 12) need not be formed: its last entry is a sigmoid of the
        sentinel's energy against the log of the sum of the others', and the others' ratios are those of eq. 7.

        Args:
            look: at the regions.
            gate: (M, H), W_x x.
            before: (M, H), the state before the word.
            hidden: (M, H), the state and
            cell: (M, H), the LSTM's memory after it.
        """
        query = self.query(hidden)
        seen, weights, total = look(query)
        sentinel = torch.sigmoid(gate + self.gate(before)) * torch.tanh(cell)  # eq. 9, 10
        bend, score = getattr(torch, look.shared.activation), look.shared.score
        energy = (bend((self.key(sentinel) + query).to(total.dtype)) * score).sum(-1)
        beta = torch.sigmoid(energy - total)
        mixed = beta[:, None] * sentinel + (1 - beta)[:, None] * seen  # eq. 11
        return Step(mixed + hidden, weights, (), {"sentinel": beta})


def _remember(given: Tensor, from_hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the LSTM, whose input x = [w; v^g] (eq. 4) has become `given`: h and m, (n, H) each."""
    return lstm_step(given, from_hidden, torch.zeros_like(from_hidden), cell)
