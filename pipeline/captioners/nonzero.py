"""What of an image's features is not zero: behind a ReLU most of a map is, and products with zeros can be left out.

Owns the collecting, the product with a matrix and its gradient, on CPUs by `kernels.cpp`. Does not know what the
product is for; attention's kernels read the same lists.

Features of EfficientNet-Lite2's last map are 94 % zeros. Values are kept channel by channel: a row of the matrix is
then read once for all cells of an image, and a channel's share of attention is summed up in a register. An image of
which more than a quarter is not zero is left to ordinary products. Which way is taken depends on the image alone, never
on those beside it.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioners import native

_SHARE = 4  # up to one value in so many it is worth while
_MOST_CELLS = 2**16  # a cell's number takes 16 bits


@dataclass(frozen=True)
class Nonzero:
    """Lists of values, of B images.

    Attributes:
        cells: N.
        starts: (B, C + 1) int32, where each channel's values begin and end.
        places: (B, P) int16, the cell of each value, without a sign; ascending in a channel. An image of more than P
            values has none.
        values: (B, P) float32.
    """

    cells: int
    starts: Tensor
    places: Tensor
    values: Tensor

    @property
    def channels(self) -> int:
        """C."""
        return self.starts.shape[1] - 1

    @property
    def left_out(self) -> Tensor:
        """The images (B',) int64 that have none."""
        return (self.starts[:, -1] > self.values.shape[1]).nonzero()[:, 0]

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        return replace(self, starts=self.starts[images], places=self.places[images], values=self.values[images])

    def record(self, features: Tensor | None = None) -> native.NonzeroRecord:
        """What the kernels are given; `features` (B, N, C) are needed for collecting alone."""
        return native.NonzeroRecord(
            images=len(self.starts), cells=self.cells, channels=self.channels, room=self.values.shape[1],
            features=features, starts=self.starts, places=self.places, values=self.values,
        )  # fmt: skip


def nonzero_of(features: Tensor) -> Nonzero | None:
    """The lists of features (B, N, C); None where there are no kernels for them, or no image is worth while."""
    if not native.usable(features) or features.shape[1] > _MOST_CELLS:
        return None
    images, cells, channels = features.shape
    room = cells * channels // _SHARE
    found = Nonzero(
        cells,
        starts=torch.empty(images, channels + 1, dtype=torch.int32),
        places=torch.empty(images, room, dtype=torch.int16),
        values=torch.empty(images, room),
    )
    native.call("collect_nonzero", features.dtype, found.record(features.contiguous()))
    return None if len(found.left_out) == images else found


def product(features: Tensor, nonzero: Nonzero | None, weights: Tensor) -> Tensor:
    """Features (B, N, C) times a matrix (A, C), transposed: (B, N, A), with a gradient for the matrix alone.

    Args:
        features: constants.
        nonzero: of them; None leaves it all to an ordinary product, as other precisions than float32 do.
        weights: the matrix.
    """
    if nonzero is None or not _usable(features, weights):
        return functional.linear(features, weights)
    found: Tensor = _Product.apply(nonzero, weights)
    left_out = nonzero.left_out
    if len(left_out):
        found = found.index_copy(0, left_out, functional.linear(features[left_out], weights))
    return found


def _usable(features: Tensor, weights: Tensor) -> bool:
    """Whether the product is one of float32: units for narrower numbers are faster with all the zeros."""
    autocast = torch.is_autocast_enabled("cpu")
    return features.dtype == weights.dtype == torch.float32 and not autocast and not features.requires_grad


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, nonzero: Nonzero, weights: Tensor) -> Tensor:
        ctx.nonzero = nonzero
        size = len(weights)
        products = weights.new_empty(len(nonzero.starts), nonzero.cells, size)
        own = native.ProductsRecord(size=size, weights=weights.T.contiguous(), products=products)
        native.call("multiply_nonzero", torch.float32, nonzero.record(), own)
        return products

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[None, Tensor]:
        products = above[0].contiguous()
        weights = products.new_empty(ctx.nonzero.channels, products.shape[2])
        own = native.ProductsRecord(size=products.shape[2], products=products, weights=weights)
        native.call("multiply_nonzero_back", torch.float32, ctx.nonzero.record(), own)
        return None, weights.T
