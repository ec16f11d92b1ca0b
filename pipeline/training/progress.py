"""Where a training stands.

Owns what a restart needs beside the weights and the optimiser's state. Does not know how a step is made.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Record = dict[str, float]


@dataclass
class Progress:
    """Epochs done, and the one that is being done.

    Attributes:
        sums: (3,) float64 on the device, of this epoch: the loss over words, the penalty over steps, and the words
            among the five likeliest.
        epoch: done so far.
        batches: of this epoch, done.
        words: of those batches.
        history: a record an epoch.
        best: the best monitor so far.
        best_epoch: whose it is, counted from 0.
    """

    sums: Tensor
    epoch: int = 0
    batches: int = 0
    words: int = 0
    history: list[Record] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1

    @classmethod
    def start(cls, device: torch.device) -> "Progress":
        """Nothing is done yet."""
        return cls(torch.zeros(3, dtype=torch.float64, device=device))

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch

    def epoch_ended(self) -> None:
        """Begin the next."""
        self.epoch, self.batches, self.words = self.epoch + 1, 0, 0
        self.sums.zero_()

    def state(self) -> dict[str, Any]:
        """What a restart needs."""
        return {**vars(self), "sums": self.sums.clone(), "history": list(self.history)}


def told(history: list[Record]) -> str:
    """The last epoch in a line."""
    record = history[-1]
    return (
        f"epoch {len(history)}: loss {record['train/loss']:.3f}, validation loss {record['validation/loss']:.3f}, "
        f"top-5 {record['train/top5_accuracy']:.1f} %, BLEU-4 {record['validation/bleu4']:.2f}, "
        f"CIDEr {record['validation/cider']:.1f}"
    )
