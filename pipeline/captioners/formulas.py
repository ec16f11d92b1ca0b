"""Additive attention's energies and their gradients, as formulas.

Owns v . f(key + query) and its derivatives in plain torch, and when a GPU is given one kernel for each. Does not know
captions or images. The C++ loops of `kernels.cpp` compute the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WORTH_COMPILING = 1 << 19  # keys; below it, on a GPU, a step is faster than the call of a compiled formula


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


def formula(name: str, keys: Tensor) -> Callable[..., Any]:
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
