"""Attention over what the captions of an image share, a word at a time, forward and backward.

Owns additive attention (Xu et al. 2015, eq. 4-6 and 13) with its gate (section 4.2.1): energies, softmax, context.
Does not know the recurrence around it.

The (captions, regions, A) sum of keys and queries is what makes additive attention slow: written and read several
times a word, it costs far more than every matrix product. On CPUs `kernels.cpp` forms it in registers, reads an
image's keys and features once for all its captions, and leaves finished captions out. The formulas here are what
those kernels compute; they serve other devices, float64, and machines without a C++ compiler.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.captioners import native
from pipeline.captioners.rows import Rows

Activation = Literal["relu", "tanh"]
_WORTH_COMPILING = 1 << 19  # keys; below it, on a GPU, a step is faster than the call of a compiled formula
_EPSILON = 1e-5  # of layer normalisation
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
    """

    keys: Tensor
    features: Tensor
    pooling: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    score: Tensor
    activation: Activation

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        scale, shift = (part if part is None else part[images] for part in (self.scale, self.shift))
        return replace(self, keys=self.keys[images], features=self.features[images], scale=scale, shift=shift)

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
    """

    parts: Tensor
    query_bias: Tensor
    gate_bias: Tensor | None
    weights: Tensor
    context: Tensor

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
    """

    context: Tensor
    through: Tensor
    weights: Tensor
    parts: Tensor
    keys: Tensor
    score: Tensor


class AdditiveAttention(nn.Module):
    """The weights of additive attention, and what they make of an image before the first word.

    Args:
        channels: C.
        size: A, where keys and queries are compared.
        activation: f; tanh in Bahdanau et al. 2015, relu in several implementations.
        normalise: whether each region is layer-normalised first, without weights (Ba et al. 2016).
    """

    def __init__(self, *, channels: int, size: int, activation: Activation, normalise: bool) -> None:
        super().__init__()
        self.activation, self.normalise = activation, normalise
        self.key = nn.Linear(channels, size)
        self.score = nn.Parameter(torch.empty(size))
        nn.init.uniform_(self.score, -(size**-0.5), size**-0.5)

    def share(self, features: Tensor, pooling: Tensor | None) -> Shared:
        """Project an image's cells, once for all its captions.

        Regions, pooled or normalised, are never formed: both are linear in the cells once the moments are known, so
        that U (s P f - t) = s P (U f) - t (U 1).

        Args:
            features: (B, N, C).
            pooling: (R, N) float32, or None.
        """
        keys, scale, shift = functional.linear(features, self.key.weight), None, None
        if pooling is not None:
            keys = pooling.to(keys.dtype) @ keys
        if self.normalise:
            mean, variance = _moments(features, pooling)
            scale = torch.rsqrt(variance + _EPSILON)
            shift = mean * scale
            keys = _shifted(keys, scale, shift, self.key.weight.sum(1), self.key.bias)
        else:
            keys = keys + self.key.bias
        return Shared(keys.to(features.dtype), features, pooling, scale, shift, self.score, self.activation)


def _shifted(products: Tensor, scale: Tensor, shift: Tensor, sums: Tensor, bias: Tensor) -> Tensor:
    """Scale x product - shift x sums + bias: keys of normalised regions, (B, R, A), from those of plain ones."""
    if native.usable(products, scale, sums, bias):
        keys: Tensor = _Shifted.apply(products.contiguous(), scale, shift, sums.contiguous(), bias)
        return keys
    return products * scale[..., None] - shift[..., None] * sums + bias


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[1:])
        keys = torch.empty_like(tensors[0])
        native.call("shift_keys", keys.dtype, _shift_record(tensors[0], tensors[1:], keys))
        return keys

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = above
        to_products = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        to_sums, to_bias = (gradient.new_empty(len(gradient), gradient.shape[2], dtype=torch.float32) for _ in range(2))
        own = native.KeysAboveRecord(keys=gradient.contiguous(), products=to_products, sums=to_sums, bias=to_bias)
        native.call("shift_keys_back", gradient.dtype, _shift_record(gradient, ctx.saved_tensors, None), own)
        return to_products, None, None, to_sums.sum(0), to_bias.sum(0)


def _shift_record(products: Tensor, constants: Sequence[Tensor], keys: Tensor | None) -> native.KeysRecord:
    scale, shift, sums, bias = constants
    (images, regions, size), given = products.shape, None if keys is None else products  # backward needs no products
    return native.KeysRecord(
        images=images, regions=regions, size=size,
        products=given, scale=scale, shift=shift, sums=sums, bias=bias, keys=keys,
    )  # fmt: skip


def mean_region(shared: Shared) -> Tensor:
    """The mean of an image's regions: (B, C) in float32 or wider."""
    images, count, wide = len(shared.keys), shared.keys.shape[1], shared.score.dtype
    weights = torch.full((images, 1, count), 1 / count, dtype=wide, device=shared.score.device)
    if shared.scale is not None:
        weights = weights * shared.scale[:, None]
    if shared.pooling is not None:
        weights = weights @ shared.pooling.to(wide)
    mean = torch.bmm(weights.to(shared.features.dtype), shared.features)[:, 0].to(wide)
    return mean if shared.shift is None else mean - shared.shift.mean(1, keepdim=True)


@torch.no_grad()
def _moments(features: Tensor, pooling: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over the channels of each region: (B, R) each, in float32 or wider."""
    images, cells, channels = features.shape
    if native.usable(features):
        count = cells if pooling is None else len(pooling)
        mean, variance = (features.new_empty(images, count, dtype=torch.float32) for _ in range(2))
        record = native.MomentsRecord(
            images=images,
            regions=count,
            cells=cells,
            channels=channels,
            features=features.contiguous(),
            pooling=pooling,
            mean=mean,
            variance=variance,
        )
        native.call("moments", features.dtype, record)
        return mean, variance
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    regions = wide if pooling is None else pooling.to(wide.dtype) @ wide
    variance, mean = torch.var_mean(regions, -1, correction=0)
    return mean, variance


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


def _record(rows: Rows, words: Words) -> native.WordsRecord:
    count, stride = len(words.parts), words.parts.stride(0)
    return native.WordsRecord(rows=count, parts_stride=stride, starts=rows.starts, members=rows.members, **vars(words))


def _attend(shared: Shared, rows: Rows, words: Words) -> None:
    (images, captions), places = rows.extent(len(words.parts)), rows.places(len(words.parts))
    query, gate = words.split(words.parts)
    queries = _spread(query + words.query_bias.to(query.dtype), places, images, captions)
    energy = _formula(f"{shared.activation}_energy", shared.keys)(shared.keys[:images], queries, shared.score)
    weights = torch.softmax(energy, -1)
    words.weights.copy_(weights.flatten(0, 1)[places])
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
    to_energy = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True))
    queries = _spread(query + words.query_bias.to(query.dtype), places, images, captions)
    formula = _formula(f"{shared.activation}_gradients", shared.keys)
    to_keys, to_queries, to_score = formula(shared.keys[:images], queries, to_energy)
    to_query.copy_(to_queries.flatten(0, 1)[places] * shared.score)
    above.keys[:images] += to_keys
    above.score[:images] += to_score


def _spread(rows: Tensor, places: Tensor, images: int, captions: int) -> Tensor:
    """Lay rows out over (images, captions), zero where there is none."""
    flat = rows.new_zeros(images * captions, rows.shape[-1]).index_copy(0, places, rows)
    return flat.view(images, captions, rows.shape[-1])


def _total(keys: Tensor, queries: Tensor) -> Tensor:
    wide = torch.promote_types(keys.dtype, torch.float32)
    return keys[:, None].to(wide) + queries[:, :, None].to(wide)


def _relu_energy(keys: Tensor, queries: Tensor, score: Tensor) -> Tensor:
    return (torch.relu(_total(keys, queries)) * score).sum(-1)


def _tanh_energy(keys: Tensor, queries: Tensor, score: Tensor) -> Tensor:
    return (torch.tanh(_total(keys, queries)) * score).sum(-1)


def _relu_gradients(keys: Tensor, queries: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = _total(keys, queries)
    slope = above[..., None] * (total > 0)
    return slope.sum(1), slope.sum(2), (above[..., None] * torch.relu(total)).sum((1, 2))


def _tanh_gradients(keys: Tensor, queries: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.tanh(_total(keys, queries))
    slope = above[..., None] * (1 - value * value)
    return slope.sum(1), slope.sum(2), (above[..., None] * value).sum((1, 2))


_FORMULAS: dict[str, Callable[..., Any]] = {
    "relu_energy": _relu_energy,
    "tanh_energy": _tanh_energy,
    "relu_gradients": _relu_gradients,
    "tanh_gradients": _tanh_gradients,
}


def _formula(name: str, keys: Tensor) -> Callable[..., Any]:
    """The formula as it is, or on a GPU, where the sum is large, as one kernel."""
    if keys.is_cuda and keys.numel() >= _WORTH_COMPILING and keys.dtype != torch.float64 and _compiler_works():
        return _compiled(name)
    return _FORMULAS[name]


@functools.cache
def _compiled(name: str) -> Callable[..., Any]:
    # Every special shape (one image, one caption, as many of both) gets a kernel of its own. At the usual limit of 8
    # those met last would go uncompiled, and a run that went on after a kill would end with other bytes.
    compiled: Callable[..., Any] = torch.compile(_FORMULAS[name], dynamic=True, recompile_limit=64)  # type: ignore[call-overload]
    return compiled


@functools.cache
def _compiler_works() -> bool:
    """Whether `torch.compile` can make a kernel for the GPU (it needs Triton)."""
    try:
        torch.compile(torch.relu)(torch.zeros(2, 3, device="cuda"))
    except (RuntimeError, OSError, ImportError):
        return False
    return True
