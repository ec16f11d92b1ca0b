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
    """Epochs done, and the one that is being done. A phase counts on where the one before it has ended.

    Attributes:
        sums: (3,) float64 on the device, of this epoch: the phase says of what.
        epoch: done so far.
        batches: of this epoch, done.
        words: of those batches.
        history: a record an epoch.
        best: the best monitor so far.
        best_epoch: whose it is, counted from 0.
        first: epochs of the phases before.
    """

    sums: Tensor
    epoch: int = 0
    batches: int = 0
    words: int = 0
    history: list[Record] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1
    first: int = 0

    @classmethod
    def start(cls, device: torch.device) -> "Progress":
        """Nothing is done yet."""
        return cls(torch.zeros(3, dtype=torch.float64, device=device))

    @property
    def stale(self) -> int:
        """Epochs of this phase since the best one."""
        return self.epoch - max(self.best_epoch + 1, self.first)

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
    if "train/reward" in record:
        learnt, accuracy = f"reward {record['train/reward']:.1f}", ""
    else:
        learnt, accuracy = f"loss {record['train/loss']:.3f}", f"top-5 {record['train/top5_accuracy']:.1f} %, "
    return (
        f"epoch {len(history)}: {learnt}, validation loss {record['validation/loss']:.3f}, {accuracy}"
        f"BLEU-4 {record['validation/bleu4']:.2f}, CIDEr {record['validation/cider']:.1f}"
    )
