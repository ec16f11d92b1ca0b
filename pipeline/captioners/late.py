"""A linear map that every word of a batch goes through, whose weight learns from all of them at once.

Owns what of the gradient is put off. Autograd would add up a whole matrix for every word; a word is a product of few
rows, so that costs more than the product does. Here what comes in and the gradients of what goes out are kept, and the
weight's gradient is one product when the last word has been gone back through. Does not know the recurrence.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.captioners.root import rooted


class Late:
    """Products of words, one after the other.

    Go back to the weights in every backward pass, or in none: what a pass leaves behind would count in the next one.

    Args:
        layer: whose weight and bias they are with.
        like: in whose dtype they are formed.
    """

    def __init__(self, layer: nn.Linear, like: Tensor) -> None:
        self._weight, self._bias = layer.weight.detach().to(like.dtype), layer.bias.detach().to(like.dtype)
        self._gathered = _Gathered(layer.weight.dtype)
        self._root = rooted(self._gathered, layer.weight, layer.bias)

    def __call__(self, values: Tensor) -> Tensor:
        """(n, D) to (n, E)."""
        with torch.autocast(values.device.type, enabled=False):
            values = values.to(self._weight.dtype)
            product: Tensor = _Product.apply(self._gathered, self._root, values, self._weight, self._bias)
        return product


@dataclass
class _Gathered:
    """What the words gone back through have left for the root."""

    dtype: torch.dtype
    words: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what came in, and the gradient of what went out

    def spend(self) -> tuple[Tensor, Tensor]:
        """Hand the gradients of weight and bias on, and forget them."""
        values, above = (torch.cat(parts) for parts in zip(*self.words, strict=True))
        self.words = []
        return (above.T @ values).to(self.dtype), above.sum(0, dtype=self.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: _Gathered, root: Tensor, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.gathered = gathered
        ctx.save_for_backward(root, values, weight)
        return functional.linear(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        root, values, weight = ctx.saved_tensors
        ctx.gathered.words.append((values, above[0]))
        return None, torch.zeros_like(root), above[0] @ weight, None, None
