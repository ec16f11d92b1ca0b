"""GRU, dot-product attention, skip connection, layer normalisation: the InceptionResNetV2 tutorial's decoder.

Owns its weights and its options. Does not know how it is trained or searched.

Attention does not feed the recurrence: the GRU runs through the words alone, and then all words of a batch look at
their images at once. The source is `asl-ml-immersion`'s notebook on captioning with visual attention (Google Cloud):
Keras' GRU, `Attention()`, `Add`, `LayerNormalization`, all of one size.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.gru import gru_step
from pipeline.captioners.late import Late
from pipeline.captioners.projection import layer_normalised
from pipeline.captioners.rows import Rows, Unrolled
from pipeline.captioners.stepwise import Memory, Step, Stepwise

_EPSILON = 1e-3  # of Keras' LayerNormalization


@dataclass(frozen=True)
class GruOptions:
    """`train.decoder_options` of the GRU with dot-product attention.

    Attributes:
        normalise: whether each region is layer-normalised first; the source takes them as they come.
    """

    normalise: bool


@dataclass(frozen=True)
class Keys:
    """What the captions of B images share: keys that are the values too, (B, R, H)."""

    regions: Tensor

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        return replace(self, regions=self.regions[images])

    def __len__(self) -> int:
        return len(self.regions)


class GruCaptioner(Stepwise):
    """Logits = W LayerNorm(h + sum over regions of a_i k_i), k_i = ReLU(D f_i), a = softmax(k . h), h the GRU's state.

    Energies are plain dot products: Keras' Attention has `use_scale=False` and no division by the root of the size.
    The state is the query, so keys are of the hidden size, and the attention size is not used. Weights begin as
    torch's do, whose spread is that of Keras' Glorot and orthogonal ones for square matrices; biases not at zero.
    """

    def __init__(self, shape: DecoderShape, options: GruOptions) -> None:
        super().__init__(shape)
        size = shape.hidden_size
        self.normalise, self.size = options.normalise, size
        self.key = nn.Linear(shape.channels, size)
        self.from_word = nn.Linear(shape.embedding_size, 3 * size)
        self.from_hidden = nn.Linear(size, 3 * size)
        self.norm = nn.LayerNorm(size, eps=_EPSILON)
        self.output = nn.Linear(size, shape.vocabulary_size)

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Keys, Memory]:
        """Keys; the state starts at zero."""
        if self.normalise:
            regions = layer_normalised(_pooled(regions, self.pooling))
            keys = functional.linear(regions, self.key.weight)
        else:  # D (P f) is P (D f)
            keys = _pooled(functional.linear(regions, self.key.weight), self.pooling)
        keys = torch.relu(keys + self.key.bias)
        return Keys(keys), (self.key.bias.new_zeros(len(keys), self.size),)

    def given(self, words: Tensor) -> Tensor:
        share: Tensor = self.from_word(words)  # (M, 3H)
        return share

    def looking(self, shared: Keys, rows: Rows) -> tuple[Keys, Rows]:
        return shared, rows

    def advance(self, look: tuple[Keys, Rows], given: Tensor, memory: Memory) -> Step:
        (hidden,) = memory
        return self._looked(*look, gru_step(given, self.from_hidden(hidden), hidden))

    def scored(self, seen: Tensor) -> Tensor:
        logits: Tensor = self.output(seen)
        return logits

    def _unroll(
        self, regions: Tensor, unrolled: Unrolled, given: Tensor, generator: torch.Generator | None
    ) -> list[Step]:
        """All words as if they were of one step: none waits for what another saw."""
        keys, (hidden,) = self.begin(regions, generator)
        hidden, states, from_hidden = hidden.index_select(0, unrolled.rows.image), [], Late(self.from_hidden, given)
        for own in given.split(unrolled.counts):
            before = hidden[: len(own)]
            hidden = gru_step(own, from_hidden(before), before)
            states.append(hidden)
        images = np.concatenate([unrolled.rows.images_of(count) for count in unrolled.counts])
        return [self._looked(keys, Rows(images, len(keys), given.device), torch.cat(states))]

    def _looked(self, keys: Keys, rows: Rows, hidden: Tensor) -> Step:
        """What states (n, H), of the first n rows, see; energies in the state's precision."""
        (images, most), places = rows.extent(len(hidden)), rows.places(len(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            own = keys.regions[:images].to(hidden.dtype)
            queries = hidden.new_zeros(images * most, self.size).index_copy(0, places, hidden)
            weights = torch.softmax(queries.view(images, most, -1) @ own.mT, -1)
            context, attention = ((part.flatten(0, 1)[places]) for part in (weights @ own, weights))
            return Step(self.norm(hidden + context), attention, (hidden,))


def _pooled(values: Tensor, pooling: Tensor | None) -> Tensor:
    return values if pooling is None else pooling.to(values.dtype) @ values
