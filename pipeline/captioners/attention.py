"""Additive attention, fused so that its big intermediate never reaches memory.

Owns the energy v . f(U region + W hidden) and what follows from it. Does not know the decoder around it.

The (B, K, R, A) sum of keys and queries is what makes additive attention slow: written and read several times a
word, it costs far more than every matrix product. It is formed in registers here, in the forward and again in the
backward pass, by kernels that `torch.compile` makes; where no compiler works, or the sum is small, plain torch
does the same arithmetic.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]

# Below this many keys a step is faster than the call of a compiled kernel, and a start-up need not wait for one.
_WORTH_COMPILING = 1 << 19


class AdditiveAttention(nn.Module):
    """Weigh regions by how well they fit what the decoder is about to say (Xu et al. 2015, eq. 4-6).

    Args:
        channels: C of the regions.
        attention_size: A, where both are compared.
        activation: f above; tanh in Bahdanau et al. 2015, relu in several implementations.
    """

    def __init__(self, *, channels: int, attention_size: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.key = nn.Linear(channels, attention_size)
        self.score = nn.Parameter(torch.empty(attention_size))
        nn.init.uniform_(self.score, -(attention_size**-0.5), attention_size**-0.5)

    def keys(self, regions: Tensor) -> Tensor:
        """The regions' side, once an image: (B, R, C) to (B, R, A)."""
        return self.key(regions)  # type: ignore[no-any-return]

    def forward(self, keys: Tensor, regions: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Attend once for each of the K captions of every image.

        Args:
            keys: (B, R, A), from `keys`.
            regions: (B, R, C).
            queries: (B, K, A), W h of the state before this word.

        Returns:
            The contexts, (B, K, C), and the weights, (B, K, R), which sum to 1 over R.
        """
        weights = torch.softmax(additive_energy(keys, queries, self.score, self.activation), dim=-1)
        return torch.bmm(weights.to(regions.dtype), regions), weights


def additive_energy(keys: Tensor, queries: Tensor, score: Tensor, activation: Activation) -> Tensor:
    """e[b, k, r] = sum over a of score[a] f(keys[b, r, a] + queries[b, k, a]), in float32 or wider.

    Args:
        keys: (B, R, A).
        queries: (B, K, A).
        score: (A,).
        activation: f.

    Returns:
        (B, K, R).
    """
    energy: Tensor = _Energy.apply(keys, queries, score, activation)
    return energy


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys: Tensor, queries: Tensor, score: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(keys, queries, score)
        ctx.activation = activation
        energy: Tensor = _kernel(f"{activation}_energy", keys)(keys, queries, _wide(score, keys))
        return energy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        keys, queries, score = ctx.saved_tensors
        kernel = _kernel(f"{ctx.activation}_gradients", keys)
        to_keys, to_queries, to_score = kernel(keys, queries, _wide(score, keys), gradients[0].contiguous())
        return to_keys.to(keys.dtype), to_queries.to(queries.dtype), to_score.to(score.dtype), None


def _wide(score: Tensor, keys: Tensor) -> Tensor:
    return score.to(torch.promote_types(keys.dtype, torch.float32))


def _relu_energy(keys: Tensor, queries: Tensor, score: Tensor) -> Tensor:
    return (torch.relu(keys[:, None].to(score.dtype) + queries[:, :, None].to(score.dtype)) * score).sum(-1)


def _tanh_energy(keys: Tensor, queries: Tensor, score: Tensor) -> Tensor:
    return (torch.tanh(keys[:, None].to(score.dtype) + queries[:, :, None].to(score.dtype)) * score).sum(-1)


def _relu_gradients(keys: Tensor, queries: Tensor, score: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = keys[:, None].to(score.dtype) + queries[:, :, None].to(score.dtype)
    slope = above[..., None] * (total > 0)
    return slope.sum(1) * score, slope.sum(2) * score, (above[..., None] * torch.relu(total)).sum((0, 1, 2))


def _tanh_gradients(keys: Tensor, queries: Tensor, score: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.tanh(keys[:, None].to(score.dtype) + queries[:, :, None].to(score.dtype))
    slope = above[..., None] * (1 - value * value)
    return slope.sum(1) * score, slope.sum(2) * score, (above[..., None] * value).sum((0, 1, 2))


_FORMULAS: dict[str, Callable[..., Any]] = {
    "relu_energy": _relu_energy,
    "tanh_energy": _tanh_energy,
    "relu_gradients": _relu_gradients,
    "tanh_gradients": _tanh_gradients,
}


def _kernel(name: str, keys: Tensor) -> Callable[..., Any]:
    if keys.numel() < _WORTH_COMPILING or keys.dtype == torch.float64 or not compiler_works(keys.device.type):
        return _FORMULAS[name]
    return _compiled(name)


@functools.cache
def _compiled(name: str) -> Callable[..., Any]:
    # Every special shape (one image, one caption, as many of both) gets a kernel of its own. At the usual limit of 8
    # those met last would go uncompiled, and a run that went on after a kill would end with other bytes.
    compiled: Callable[..., Any] = torch.compile(_FORMULAS[name], dynamic=True, recompile_limit=64)  # type: ignore[call-overload]
    return compiled


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Whether `torch.compile` can make a kernel here (it needs a C++ compiler, or Triton on a GPU)."""
    try:
        torch.compile(torch.relu)(torch.zeros(2, 3, device=device_type))
    except (RuntimeError, OSError, ImportError):
        return False
    return True
