"""The step of an LSTM, forward and backward.

Owns the arithmetic after the products (Hochreiter and Schmidhuber 1997, with forget gates; Xu et al. 2015, eq. 1-3).
Does not know where the products come from. `kernels.cpp` does it in one pass on CPUs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.captioners import native


@dataclass(frozen=True)
class Cells:
    """A step of n captions; the gates are, in this order, enter, forget, leave and the candidate.

    Attributes:
        before: (n, H) float32 or wider, the cells so far.
        gates: (n, 4H), to be filled: after sigmoid and tanh.
        cell: (n, H) float32 or wider, to be filled.
        hidden: (n, H), to be filled.
    """

    before: Tensor
    gates: Tensor
    cell: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class CellsAbove:
    """Gradients of a step.

    Attributes:
        hidden: (n, H) and
        carried: (n, H), whose sum is the hidden state's.
        carried_cell: (n, H) float32 or wider, of the cells; replaced by the gradient of those before.
        gates: (n, 4H), maybe columns of a wider tensor, to be filled: of the gates before sigmoid and tanh.
    """

    hidden: Tensor
    carried: Tensor
    carried_cell: Tensor
    gates: Tensor


def remember(step: Cells, from_word: Tensor, from_hidden: Tensor, from_context: Tensor) -> None:
    """Fill gates, cell and hidden state.

    Args:
        step: to be filled, but for the cells before.
        from_word: (n, 4H),
        from_hidden: (n, 4H), maybe columns of a wider tensor, and
        from_context: (n, 4H), whose sum the gates are before sigmoid and tanh, biases included.
    """
    if native.usable(step.hidden, step.cell):
        stride = from_hidden.stride(0)
        record = native.SumRecord(hidden_stride=stride, word=from_word, hidden=from_hidden, context=from_context)
        native.call("remember", step.hidden.dtype, _record(step), record)
        return
    wide = step.cell.dtype
    total = from_word.to(wide) + from_hidden.to(wide) + from_context.to(wide)
    parts, candidate = total.tensor_split((3 * step.cell.shape[1],), -1)
    gates = torch.cat((torch.sigmoid(parts), torch.tanh(candidate)), -1)
    enter, forget, leave, candidate = gates.chunk(4, -1)
    cell = forget * step.before + enter * candidate
    step.gates.copy_(gates)
    step.cell.copy_(cell)
    step.hidden.copy_(leave * torch.tanh(cell))


def remember_back(step: Cells, above: CellsAbove) -> None:
    """Fill the gates' gradient and pass the cells' on; `step` is as `remember` left it."""
    if native.usable(step.hidden, step.cell):
        record = native.CellsAboveRecord(gates_stride=above.gates.stride(0), **vars(above))
        native.call("remember_back", step.hidden.dtype, _record(step), record)
        return
    enter, forget, leave, candidate = step.gates.to(step.cell.dtype).chunk(4, -1)
    bent = torch.tanh(step.cell)
    gradient = above.hidden.to(step.cell.dtype) + above.carried.to(step.cell.dtype)
    inner = above.carried_cell + gradient * leave * (1 - bent * bent)
    parts = (
        inner * candidate * enter * (1 - enter),
        inner * step.before * forget * (1 - forget),
        gradient * bent * leave * (1 - leave),
        inner * enter * (1 - candidate * candidate),
    )
    above.gates.copy_(torch.cat(parts, -1))
    above.carried_cell.copy_(inner * forget)


def _record(step: Cells) -> native.CellsRecord:
    rows, size = step.cell.shape
    return native.CellsRecord(rows=rows, size=size, **vars(step))


def lstm_step(from_word: Tensor, from_hidden: Tensor, from_context: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step, differentiable.

    Args:
        from_word: (n, 4H),
        from_hidden: (n, 4H) and
        from_context: (n, 4H), whose sum the gates are before sigmoid and tanh, biases included.
        cell: (n, H) float32 or wider, the cells before.

    Returns:
        The hidden state, (n, H) in the products' dtype, and the cells after, (n, H) as wide as those before.
    """
    with torch.autocast(cell.device.type, enabled=False):
        hidden, after = _Step.apply(*(part.contiguous() for part in (from_word, from_hidden, from_context, cell)))
    return hidden, after


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, from_word: Tensor, from_hidden: Tensor, from_context: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates, hidden = torch.empty_like(from_word), from_word.new_empty(cell.shape)
        step = Cells(cell, gates, torch.empty_like(cell), hidden)
        remember(step, from_word, from_hidden, from_context)
        ctx.save_for_backward(cell, gates, step.cell)
        return hidden, step.cell

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        before, gates, cell = ctx.saved_tensors
        hidden = above[0].contiguous()
        to_gates, to_cell = torch.empty_like(gates), above[1].clone(memory_format=torch.contiguous_format)
        own = CellsAbove(hidden, torch.zeros_like(hidden), to_cell, to_gates)
        remember_back(Cells(before, gates, cell, hidden), own)
        return to_gates, to_gates, to_gates, to_cell
