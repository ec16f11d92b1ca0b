"""Where autograd comes when all words that use something have been gone back through.

Owns that one node. Does not know what the words have left to be handed on.
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class Gathered(Protocol):
    """What the words gone back through have left."""

    def spend(self) -> tuple[Tensor | None, ...]:
        """The gradients of the tensors that the node stands for, in their order; they are forgotten."""
        ...


def rooted(gathered: Gathered, *tensors: Tensor) -> Tensor:
    """A number that stands for tensors: give each word's function a gradient of zero for it.

    Args:
        gathered: asked once, after the last of those functions.
        tensors: what has the gradients.
    """
    root: Tensor = _Root.apply(gathered, *tensors)
    return root


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gathered: Gathered, *tensors: Tensor) -> Tensor:
        ctx.gathered = gathered
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_above: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gathered.spend()
