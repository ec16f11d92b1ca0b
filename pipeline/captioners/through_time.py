"""Attention and LSTM over all words of given captions, forward and backward through time.

Owns the loop over steps in both directions and what is kept between them. Does not know words, vocabularies or
losses, nor how a state begins.

Autograd would keep every small tensor of every word, add weight gradients up word by word, and call a dozen kernels
for each product. Written by hand (backpropagation through time, Werbos 1990), a word costs four products and four
passes over its rows, and weight gradients are one product over all words.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.captioners.attention import Above, Shared, Words, attend, attend_back, features_back
from pipeline.captioners.lstm import Cells, CellsAbove, remember, remember_back
from pipeline.captioners.rows import Rows, Unrolled


class Weights(NamedTuple):
    """The recurrent weights; matrices in the features' dtype, biases in float32 or wider.

    Attributes:
        hidden: (A + G + 4H, H), what a step takes from the state before it: query, gate (G = C, or 0), LSTM.
        context: (4H, C).
        query_bias: (A,).
        gate_bias: (C,); None without a gate.
    """

    hidden: Tensor
    context: Tensor
    query_bias: Tensor
    gate_bias: Tensor | None


@dataclass(frozen=True)
class Trace:
    """What is kept of M words; a step's rows are a slice.

    Attributes:
        parts: (M, A + G + 4H), W h: queries, the gate after its sigmoid, the LSTM's share.
        weights: (M, R).
        context: (M, C).
        gates: (M, 4H) after sigmoid and tanh.
        cell: (M, H) float32 or wider.
        hidden: (M, H).
    """

    parts: Tensor
    weights: Tensor
    context: Tensor
    gates: Tensor
    cell: Tensor
    hidden: Tensor

    @classmethod
    def empty(cls, count: int, shared: Shared, weights: Weights) -> "Trace":
        """Room for M words."""
        features, wide = shared.features, shared.score.dtype
        size = weights.hidden.shape[1]
        return cls(
            parts=features.new_empty(count, len(weights.hidden)),
            weights=features.new_empty(count, shared.keys.shape[1], dtype=wide),
            context=features.new_empty(count, features.shape[2]),
            gates=features.new_empty(count, 4 * size),
            cell=features.new_empty(count, size, dtype=wide),
            hidden=features.new_empty(count, size),
        )

    def step(self, own: slice) -> "Trace":
        """One step's rows."""
        return Trace(**{name: kept[own] for name, kept in vars(self).items()})

    def words(self, weights: Weights) -> Words:
        """As attention takes them."""
        return Words(self.parts, weights.query_bias, weights.gate_bias, self.weights, self.context)

    def cells(self, before: Tensor) -> Cells:
        """As the LSTM takes them, with the cells before."""
        return Cells(before, self.gates, self.cell, self.hidden)


def advance(
    shared: Shared, weights: Weights, rows: Rows, hidden: Tensor, cell: Tensor, from_word: Tensor, trace: Trace
) -> None:
    """One word of the first n rows: fill `trace`.

    Args:
        shared: of the images.
        weights: recurrent.
        rows: of N captions.
        hidden: (n, H) in the features' dtype.
        cell: (n, H) float32 or wider.
        from_word: (n, 4H), the LSTM's share of the word, its biases included.
        trace: of n words, to be filled.
    """
    torch.mm(hidden, weights.hidden.T, out=trace.parts)
    attend(shared, rows, trace.words(weights))
    own = trace.parts[:, -from_word.shape[1] :]
    remember(trace.cells(cell), from_word, own, trace.context @ weights.context.T)


def unroll(
    shared: Shared, weights: Weights, unrolled: Unrolled, hidden: Tensor, cell: Tensor, from_words: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All words of given captions.

    Gradients reach keys, score, weights, first states and `from_words`, and the features where they ask for any.

    Args:
        shared: of B images.
        weights: recurrent.
        unrolled: which words there are.
        hidden: (B, H) and
        cell: (B, H), the state before the first word.
        from_words: (M, 4H), the LSTM's share of each word, its biases included.

    Returns:
        Hidden states (M, H), contexts (M, C) and attention (M, R), in the order of `unrolled`.
    """
    dtype, wide = shared.features.dtype, shared.score.dtype
    with torch.autocast(shared.features.device.type, enabled=False):
        found: tuple[Tensor, Tensor, Tensor] = _Unroll.apply(
            shared,
            unrolled,
            shared.features,
            shared.keys,
            shared.score,
            *weights,
            hidden.to(dtype),
            cell.to(wide),
            from_words.to(dtype),
        )
    return found


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shared: Shared, unrolled: Unrolled, _features: Tensor, _keys: Tensor, _score: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, (hidden, cell, from_words) = Weights(*rest[:4]), rest[4:]
        trace = Trace.empty(len(from_words), shared, weights)
        first = hidden[unrolled.rows.image], cell[unrolled.rows.image]
        before = first
        for count, own in zip(unrolled.counts, unrolled.slices(), strict=True):
            step = trace.step(own)
            advance(shared, weights, unrolled.rows, before[0][:count], before[1][:count], from_words[own], step)
            before = step.hidden, step.cell
        ctx.shared, ctx.unrolled, ctx.images = shared, unrolled, len(hidden)
        ctx.save_for_backward(*weights, *first, *vars(trace).values())
        return trace.hidden, trace.context, trace.weights

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        weights, (hidden, cell), trace = Weights(*saved[:4]), saved[4:6], Trace(*saved[6:])
        shared, unrolled = ctx.shared, ctx.unrolled
        through = torch.empty_like(trace.context) if shared.features.requires_grad else None
        to_parts, to_keys, to_score, carried, carried_cell = _walk_back(
            shared, unrolled, weights, cell, trace, above, through
        )
        queries, gates = len(weights.query_bias), 4 * trace.hidden.shape[1]
        before = torch.cat((hidden, trace.hidden))[unrolled.before()]
        to_gate = to_parts[:, queries:-gates]
        to_first = (
            rows.new_zeros(ctx.images, rows.shape[1]).index_add(0, unrolled.rows.image, rows)
            for rows in (carried, carried_cell)
        )
        return (
            None,
            None,
            None if through is None else _to_features(shared, unrolled, weights, trace, above[1] + through),
            (to_keys * shared.score).to(shared.keys.dtype),
            to_score.sum(0),
            to_parts.T @ before,
            to_parts[:, -gates:].T @ trace.context,
            to_parts[:, :queries].sum(0, dtype=to_score.dtype),
            None if weights.gate_bias is None else to_gate.sum(0, dtype=to_score.dtype),
            *to_first,
            to_parts[:, -gates:],
        )


def _walk_back(
    shared: Shared,
    unrolled: Unrolled,
    weights: Weights,
    cell: Tensor,
    trace: Trace,
    above: tuple[Tensor, ...],
    kept: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From the last word to the first: gradients of `Trace.parts`, of keys and score, and of the first states.

    `kept`, (M, C), is filled with what each context's gradient owes to the LSTM, unless it is None.
    """
    to_hidden, to_context, to_weights = (
        gradient.to(own.dtype).contiguous()
        for gradient, own in zip(above, (trace.hidden, trace.context, trace.weights), strict=True)
    )
    to_parts = torch.empty_like(trace.parts)
    images, regions, size = shared.keys.shape
    to_keys, to_score = trace.weights.new_zeros(images, regions, size), trace.weights.new_zeros(images, size)
    carried = torch.zeros_like(trace.hidden[: len(cell)])
    carried_cell = torch.zeros_like(cell)
    slices = unrolled.slices()
    for time, own in reversed(list(enumerate(slices))):
        count, step = unrolled.counts[time], trace.step(own)
        before = (trace.cell[slices[time - 1]] if time else cell)[:count]
        to_gates = to_parts[own][:, -trace.gates.shape[1] :]
        cells = step.cells(before)
        remember_back(cells, CellsAbove(to_hidden[own], carried[:count], carried_cell[:count], to_gates))
        through = to_gates @ weights.context
        if kept is not None:
            kept[own] = through
        gradients = Above(to_context[own], through, to_weights[own], to_parts[own], to_keys, to_score)
        attend_back(shared, unrolled.rows, step.words(weights), gradients)
        torch.mm(to_parts[own], weights.hidden, out=carried[:count])
    return to_parts, to_keys, to_score, carried, carried_cell


def _to_features(shared: Shared, unrolled: Unrolled, weights: Weights, trace: Trace, above: Tensor) -> Tensor:
    """The gradient of the features: (B, N, C)."""
    if weights.gate_bias is not None:
        above = above * trace.words(weights).split(trace.parts)[1]
    image = np.concatenate([unrolled.rows.images_of(count) for count in unrolled.counts])
    return features_back(shared, image, trace.weights, above)
