"""A linear layer said once a word whose weight gradient is one product over all words.

Owns that trick and nothing else. Autograd would form the whole weight's gradient at every word and add them up: for
a decoder's recurrent weights that is more memory traffic than arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class WordLinear(nn.Linear):
    """`nn.Linear` for recurrent use: `over_words()` gives the layer for one pass over a batch of captions."""

    def over_words(self) -> Callable[[Tensor], Tensor]:
        """The layer as a function of (..., in_features), to be called once a word within one forward pass.

        Same values and gradients as the layer itself; the weight's gradient is formed at the end of the backward pass.
        """
        if not torch.is_grad_enabled() or self.bias is None:
            return self
        said: list[tuple[Tensor, Tensor]] = []
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if self.weight.is_cuda:
            dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weight, bias = _Gather.apply(_cast(self.weight, dtype), _cast(self.bias, dtype), said)

        def layer(values: Tensor) -> Tensor:
            product: Tensor = _Product.apply(_cast(values, dtype), weight, bias, said)
            return product

        return layer


def _cast(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    return values if dtype is None else values.to(dtype)


class _Gather(torch.autograd.Function):
    """Stand for weight and bias in the graph: the last to run backward, it multiplies what was left in `said`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, said: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        ctx.said = said
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor, Tensor, None]:
        inputs, gradients = (torch.cat(parts) for parts in zip(*ctx.said, strict=True))
        ctx.said.clear()
        return gradients.t() @ inputs, gradients.sum(0), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, said: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.said = said
        return functional.linear(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        values, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        ctx.said.append((values.reshape(-1, weight.shape[1]), gradient))
        return (gradient @ weight).view_as(values), None, None, None
