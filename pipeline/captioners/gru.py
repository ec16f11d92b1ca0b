"""The step of a GRU, forward and backward.

Owns the arithmetic after the products (Cho et al. 2014, in the variant that cuDNN, torch and Keras' `reset_after` have:
the reset gate scales what the product made of the state, its bias included). Does not know where products come from.
"""

from typing import Any

import torch
from torch import Tensor


def gru_step(from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
    """One step, differentiable: r, z = sigmoid(x + u), n = tanh(x_n + r u_n), h' = z h + (1 - z) n.

    Args:
        from_input: (n, 3H), x of the input: reset gate, update gate and candidate; biases included.
        from_hidden: (n, 3H), u of the state before, in that order; biases included.
        hidden: (n, H) float32 or wider, h, the state before.

    Returns:
        The state after, (n, H), as wide as the one before.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        after: Tensor = _Step.apply(from_input, from_hidden, hidden)
    return after


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_input: Tensor, from_hidden: Tensor, hidden: Tensor) -> Tensor:
        size, wide = hidden.shape[1], hidden.dtype
        own = from_hidden.to(wide)
        total = from_input.to(wide)
        reset, update = torch.sigmoid(total[:, : 2 * size] + own[:, : 2 * size]).chunk(2, -1)
        candidate = torch.tanh(total[:, 2 * size :] + reset * own[:, 2 * size :])
        ctx.save_for_backward(reset, update, candidate, from_hidden, hidden)
        ctx.dtype = from_input.dtype
        return candidate + update * (hidden - candidate)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reset, update, candidate, from_hidden, hidden = ctx.saved_tensors
        (gradient,) = above
        size = hidden.shape[1]
        to_candidate = gradient * (1 - update) * (1 - candidate * candidate)
        to_update = gradient * (hidden - candidate) * update * (1 - update)
        to_reset = to_candidate * from_hidden[:, 2 * size :] * reset * (1 - reset)
        to_gates = torch.cat((to_reset, to_update), -1)
        to_input, to_own = (torch.cat((to_gates, part), -1) for part in (to_candidate, to_candidate * reset))
        return to_input.to(ctx.dtype), to_own.to(from_hidden.dtype), gradient * update
