"""Attention over what the captions of an image share, a word at a time, forward and backward.

Owns additive attention (Xu et al. 2015, eq. 4-6 and 13) with its gate (section 4.2.1): energies, softmax, context.
Does not know the recurrence around it.

The (captions, regions, A) sum of keys and queries is what makes additive attention slow: written and read several
times a word, it costs far more than every matrix product. On CPUs `kernels.cpp` forms it in registers, reads an
image's keys and features once for all its captions, and leaves finished captions out. The formulas here are what
those kernels compute; they serve other devices, float64, and machines without a C++ compiler.
"""

import functools
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from pipeline.captioners import native
from pipeline.captioners.formulas import formula
from pipeline.captioners.nonzero import Nonzero
from pipeline.captioners.rows import Places, Rows

Activation = Literal["relu", "tanh"]
_LARGEST = 43.0  # e^(2x) of two such values can be multiplied in float32


@dataclass(frozen=True)
class Shared:
    """What the captions of B images share.

    Attributes:
        keys: (B, R, A), U region, bias included.
        features: (B, N, C), cells as the cache has them.
        pooling: (R, N) float32, from cells to regions; None where they are the same.
        scale: (B, R) float32 or wider: a region is scale x pooled cells - shift; None where it is the pooled cells.
        shift: (B, R), None with `scale`.
        score: (A,) float32 or wider, v.
        activation: f of the energy v . f(key + query).
        nonzero: what of the features is not zero; None: not collected.
    """

    keys: Tensor
    features: Tensor
    pooling: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    score: Tensor
    activation: Activation
    nonzero: Nonzero | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        scale, shift = (part if part is None else part[images] for part in (self.scale, self.shift))
        nonzero = None if self.nonzero is None else self.nonzero.select(images)
        keys, features = self.keys[images], self.features[images]
        return replace(self, keys=keys, features=features, scale=scale, shift=shift, nonzero=nonzero)

    @functools.cached_property
    def record(self) -> native.AttentionRecord | None:
        """What the kernels are given, None where they do not serve."""
        if not native.usable(self.features, self.score):
            return None
        keys = self.keys
        if self.activation == "tanh":  # as e^(2x): see the kernels
            keys = torch.exp(2 * keys.float().clamp(-_LARGEST, _LARGEST))
        (images, regions, size), (_, cells, channels) = keys.shape, self.features.shape
        return native.AttentionRecord(
            images=images,
            regions=regions,
            cells=cells,
            size=size,
            channels=channels,
            tanh=self.activation == "tanh",
            keys=keys.contiguous(),
            features=self.features.contiguous(),
            pooling=self.pooling,
            scale=self.scale,
            shift=self.shift,
            score=self.score.contiguous(),
            nonzero=None if self.nonzero is None else self.nonzero.record(),
        )


@dataclass(frozen=True)
class Words:
    """A word of n captions, the first n of their `Rows`.

    Attributes:
        parts: (n, P), W h without its bias: A queries first, then C values of the gate if there is one, which are
            replaced by what they are after bias and sigmoid.
        query_bias: (A,) float32 or wider.
        gate_bias: (C,) float32 or wider; None: no gate.
        weights: (n, R) float32 or wider, to be filled; they sum to 1 over R.
        context: (n, C), to be filled: gate x sum over regions of weight x region.
        total: (n,) float32 or wider, to be filled: the log of the sum over regions of e^energy; None: not asked for.
    """

    parts: Tensor
    query_bias: Tensor
    gate_bias: Tensor | None
    weights: Tensor
    context: Tensor
    total: Tensor | None = None

    def split(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and gate of (n, P..)."""
        size, gate = len(self.query_bias), 0 if self.gate_bias is None else len(self.gate_bias)
        return parts[:, :size], parts[:, size : size + gate]


@dataclass(frozen=True)
class Above:
    """Gradients of a word of n captions.

    Attributes:
        context: (n, C) and
        through: (n, C), whose sum is the context's.
        weights: (n, R) float32 or wider, of the weights themselves.
        parts: (n, P), to be filled as `Words.parts`: of queries, and of the gate before its sigmoid.
        keys: (B, R, A) float32 or wider, added to; still to be multiplied by the score.
        score: (B, A) float32 or wider, added to.
        total: (n,) float32 or wider, of `Words.total`; None: nothing is made of it.
    """

    context: Tensor
    through: Tensor
    weights: Tensor
    parts: Tensor
    keys: Tensor
    score: Tensor
    total: Tensor | None = None


def attend(shared: Shared, rows: Rows, words: Words) -> None:
    """Fill the weights, the context and the gate of a word."""
    if shared.record is None:
        _attend(shared, rows, words)
    else:
        native.call("attend", shared.features.dtype, shared.record, _record(rows, words))


def attend_back(shared: Shared, rows: Rows, words: Words, above: Above) -> None:
    """Fill the gradients of queries and gate, add to those of keys and score; `words` are as `attend` left them."""
    if shared.record is None:
        _attend_back(shared, rows, words, above)
    else:
        record = native.AboveRecord(parts_stride=above.parts.stride(0), **vars(above))
        native.call("attend_back", shared.features.dtype, shared.record, _record(rows, words), record)


def features_back(shared: Shared, image: Places, weights: Tensor, above: Tensor) -> Tensor:
    """The gradient of features that are no constants, from what M words saw of them: (B, N, C).

    Args:
        shared: with regions that are (pooled) cells as they are: scale and shift would depend on the features too.
        image: (M,) which image each word looked at.
        weights: (M, R).
        above: (M, C), the gradient of each context before its gate.
    """
    assert shared.scale is None, "normalised regions are formed where features learn"
    words = Rows(image, len(shared), shared.features.device)
    (images, most), places = words.extent(len(image)), words.places(len(image))
    dtype = shared.features.dtype
    looked, gradient = (_spread(part.to(dtype), places, images, most) for part in (weights, above))
    to_regions = torch.bmm(looked.mT, gradient)
    to_cells = to_regions if shared.pooling is None else shared.pooling.T.to(dtype) @ to_regions
    return torch.cat((to_cells, to_cells.new_zeros(len(shared) - images, *to_cells.shape[1:])))


def _record(rows: Rows, words: Words) -> native.WordsRecord:
    count, stride = len(words.parts), words.parts.stride(0)
    return native.WordsRecord(rows=count, parts_stride=stride, starts=rows.starts, members=rows.members, **vars(words))


def _attend(shared: Shared, rows: Rows, words: Words) -> None:
    (images, captions), places = rows.extent(len(words.parts)), rows.places(len(words.parts))
    query, gate = words.split(words.parts)
    queries = _spread(query + words.query_bias.to(query.dtype), places, images, captions)
    energy = formula(f"{shared.activation}_energy", shared.keys)(shared.keys[:images], queries, shared.score)
    weights = torch.softmax(energy, -1)
    words.weights.copy_(weights.flatten(0, 1)[places])
    if words.total is not None:
        words.total.copy_(torch.logsumexp(energy, -1).flatten()[places])
    scaled = weights if shared.scale is None else weights * shared.scale[:images, None]
    cells = scaled if shared.pooling is None else scaled @ shared.pooling.to(scaled.dtype)
    context = torch.bmm(cells.to(shared.features.dtype), shared.features[:images]).to(weights.dtype)
    if shared.shift is not None:
        context = context - (weights * shared.shift[:images, None]).sum(-1, keepdim=True)
    context = context.flatten(0, 1)[places]
    if words.gate_bias is not None:
        gate.copy_(torch.sigmoid(gate.to(weights.dtype) + words.gate_bias))
        context = context * gate
    words.context.copy_(context)


def _attend_back(shared: Shared, rows: Rows, words: Words, above: Above) -> None:
    (images, captions), places = rows.extent(len(words.parts)), rows.places(len(words.parts))
    (query, gate), (to_query, to_gate) = words.split(words.parts), words.split(above.parts)
    wide = words.weights.dtype
    gradient = above.context.to(wide) + above.through.to(wide)
    if words.gate_bias is not None:
        to_gate.copy_(gradient * words.context.to(wide) * (1 - gate.to(wide)))
        gradient = gradient * gate.to(wide)
    gradient = _spread(gradient, places, images, captions)
    cells = torch.bmm(gradient.to(shared.features.dtype), shared.features[:images].mT).to(wide)
    to_weights = cells if shared.pooling is None else cells @ shared.pooling.T.to(wide)
    if shared.scale is not None and shared.shift is not None:
        to_weights = (
            to_weights * shared.scale[:images, None] - gradient.sum(-1, keepdim=True) * shared.shift[:images, None]
        )
    to_weights = to_weights + _spread(above.weights, places, images, captions)
    weights = _spread(words.weights, places, images, captions)
    mean = (weights * to_weights).sum(-1, keepdim=True)
    if above.total is not None:
        mean = mean - _spread(above.total[:, None], places, images, captions)
    to_energy = weights * (to_weights - mean)
    queries = _spread(query + words.query_bias.to(query.dtype), places, images, captions)
    gradients = formula(f"{shared.activation}_gradients", shared.keys)
    to_keys, to_queries, to_score = gradients(shared.keys[:images], queries, to_energy)
    to_query.copy_(to_queries.flatten(0, 1)[places] * shared.score)
    above.keys[:images] += to_keys
    above.score[:images] += to_score


def _spread(rows: Tensor, places: Tensor, images: int, captions: int) -> Tensor:
    """Lay rows out over (images, captions), zero where there is none."""
    flat = rows.new_zeros(images * captions, rows.shape[-1]).index_copy(0, places, rows)
    return flat.view(images, captions, rows.shape[-1])
