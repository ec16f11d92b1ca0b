"""How likely the right words were: cross-entropy and its gradient, in one pass over the scores each.

Owns that arithmetic. Does not know captions or batches. `kernels.cpp` does it on CPUs; elsewhere torch's own serves.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioners import native


def word_losses(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each word, in nats, and how many words were likelier than it.

    Args:
        logits: (M, V).
        targets: (M,) int64.
        smoothing: the share of probability spread evenly over the V words (Szegedy et al. 2016, section 7).

    Returns:
        (M,) float32 or wider, and (M,) int64.
    """
    if native.usable(logits):
        losses, likelier = _Losses.apply(logits.contiguous(), targets, smoothing)
        return losses, likelier
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    with torch.no_grad():
        likelier = (wide > wide.gather(1, targets[:, None])).sum(1)
    return functional.cross_entropy(wide, targets, label_smoothing=smoothing, reduction="none"), likelier


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        logs, losses = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
        likelier = torch.empty_like(targets)
        record = native.ScoresRecord(
            **_sizes(logits, smoothing), logits=logits, targets=targets, logs=logs, losses=losses, likelier=likelier
        )
        native.call("compare", logits.dtype, record)
        ctx.smoothing = smoothing
        ctx.save_for_backward(logits, targets, logs)
        ctx.mark_non_differentiable(likelier)
        return losses, likelier

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, logs = ctx.saved_tensors
        to_logits = torch.empty_like(logits)
        record = native.ScoresRecord(**_sizes(logits, ctx.smoothing), logits=logits, targets=targets, logs=logs)
        own = native.ScoresAboveRecord(losses=above[0].contiguous(), logits=to_logits)
        native.call("compare_back", logits.dtype, record, own)
        return to_logits, None, None


def _sizes(logits: Tensor, smoothing: float) -> dict[str, Any]:
    return {"rows": logits.shape[0], "words": logits.shape[1], "smoothing": smoothing}
