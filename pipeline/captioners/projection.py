"""What is made of an image once, before the first word: keys, the moments of its regions, and their mean.

Owns the weights of additive attention and the projection of cells that are pooled or normalised on the way. Does not
know what attention does with them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.captioners import native
from pipeline.captioners.attention import Activation, Shared
from pipeline.captioners.nonzero import nonzero_of, product

_EPSILON = 1e-5  # of layer normalisation


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
        that U (s P f - t) = s P (U f) - t (U 1). Features that learn (those of a trained tail) are normalised openly:
        their moments would have gradients too.

        Args:
            features: (B, N, C).
            pooling: (R, N) float32, or None.
        """
        if self.normalise and features.requires_grad:
            regions = features if pooling is None else pooling.to(features.dtype) @ features
            features, pooling = layer_normalised(regions), None
            keys = functional.linear(features, self.key.weight, self.key.bias)
            return Shared(keys.to(features.dtype), features, None, None, None, self.score, self.activation)
        nonzero = nonzero_of(features)
        keys, scale, shift = product(features, nonzero, self.key.weight), None, None
        if pooling is not None:
            keys = pooling.to(keys.dtype) @ keys
        if self.normalise:
            mean, variance = _moments(features, pooling)
            scale = torch.rsqrt(variance + _EPSILON)
            shift = mean * scale
            keys = _shifted(keys, scale, shift, self.key.weight.sum(1), self.key.bias)
        else:
            keys = keys + self.key.bias
        return Shared(keys.to(features.dtype), features, pooling, scale, shift, self.score, self.activation, nonzero)


def layer_normalised(regions: Tensor) -> Tensor:
    """Layer normalisation without weights, in the regions' own dtype: autocast on a GPU would leave it in float32."""
    return functional.layer_norm(regions, regions.shape[-1:], eps=_EPSILON).to(regions.dtype)


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
