"""Additive attention as one differentiable function of a query, for decoders that autograd differentiates.

Owns what of the gradient is put off: keys, score and features serve every word of a batch, so what a word adds to
their gradients is gathered where it falls, and handed on once, when the last word has been gone back through. Does
not know the recurrence around it.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.captioners.attention import Above, Shared, Words, attend, attend_back, features_back
from pipeline.captioners.root import rooted
from pipeline.captioners.rows import Rows


class Looked(NamedTuple):
    """What n captions saw.

    Attributes:
        context: (n, C) in the features' dtype.
        weights: (n, R) float32 or wider; they sum to 1 over R.
        total: (n,) float32 or wider, the log of the sum over regions of e^energy.
    """

    context: Tensor
    weights: Tensor
    total: Tensor


class Looking:
    """Attention of the captions of a batch, word by word.

    Args:
        shared: of the images.
        rows: of N captions.
    """

    def __init__(self, shared: Shared, rows: Rows) -> None:
        self.shared, self.rows = shared, rows
        self._gathered = _Gathered(shared, rows)
        self._root = rooted(self._gathered, shared.keys, shared.score, shared.features)

    def __call__(self, query: Tensor) -> Looked:
        """A word of the first n captions: queries (n, A), their bias included."""
        asked = query.to(self.shared.features.dtype).contiguous()
        with torch.autocast(query.device.type, enabled=False):
            return Looked(*_Look.apply(self._gathered, self._root, asked))


@dataclass
class _Gathered:
    """What the words gone back through have left for the root."""

    shared: Shared
    rows: Rows
    keys: Tensor | None = None
    score: Tensor | None = None
    words: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # weights and context's gradient

    def room(self) -> tuple[Tensor, Tensor]:
        """Where the gradients of keys and score are added up."""
        if self.keys is None or self.score is None:
            (images, regions, size), wide = self.shared.keys.shape, self.shared.score
            self.keys, self.score = wide.new_zeros(images, regions, size), wide.new_zeros(images, size)
        return self.keys, self.score

    def spend(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hand the gradients of keys, score and features on, and forget them."""
        (keys, score), shared = self.room(), self.shared
        features = self._features() if shared.features.requires_grad else None
        self.keys, self.score, self.words = None, None, []
        return (keys * shared.score).to(shared.keys.dtype), score.sum(0), features

    def _features(self) -> Tensor | None:
        if not self.words:
            return None
        image = np.concatenate([self.rows.images_of(len(weights)) for weights, _ in self.words])
        weights, above = (torch.cat(parts) for parts in zip(*self.words, strict=True))
        return features_back(self.shared, image, weights, above)


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: _Gathered, _root: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = gathered.shared
        words = _words(shared, query)
        attend(shared, gathered.rows, words)
        assert words.total is not None
        ctx.gathered = gathered
        ctx.save_for_backward(query, words.weights, words.context)
        return words.context, words.weights, words.total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[None, Tensor, Tensor]:
        to_context, to_weights, to_total = above
        query, weights, context = ctx.saved_tensors
        gathered, shared = ctx.gathered, ctx.gathered.shared
        words = Words(query, shared.score.new_zeros(query.shape[1]), None, weights, context)
        keys, score = gathered.room()
        to_context, to_query = to_context.contiguous(), torch.empty_like(query)
        own = Above(
            context=to_context,
            through=torch.zeros_like(to_context),
            weights=to_weights.contiguous(),
            parts=to_query,
            keys=keys,
            score=score,
            total=to_total.contiguous(),
        )
        attend_back(shared, gathered.rows, words, own)
        if shared.features.requires_grad:
            gathered.words.append((weights, to_context))
        return None, query.new_zeros(()), to_query


def _words(shared: Shared, query: Tensor) -> Words:
    count, wide = len(query), shared.score
    return Words(
        parts=query,
        query_bias=wide.new_zeros(query.shape[1]),
        gate_bias=None,
        weights=wide.new_empty(count, shared.keys.shape[1]),
        context=shared.features.new_empty(count, shared.features.shape[2]),
        total=wide.new_empty(count),
    )
