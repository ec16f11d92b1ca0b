"""The learning rate at every step.

Owns warm-up, cosine, plateau, and the constant rate of self-critical training. Does not know what is optimised.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.training.settings import TrainSettings

PLATEAU_EPOCHS = 8
PLATEAU_FACTOR = 0.8


class Schedule(Protocol):
    """A rate for every step, which may depend on how the epochs went."""

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0 over the whole phase."""

    def epoch_ended(self, stale: int) -> None:
        """Take note of how many epochs have passed without a better monitor."""

    def state(self) -> dict[str, Any]:
        """What a restart needs."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


@dataclass
class WarmedUp:
    """A linear warm-up, then cosine to zero, or plateau: x 0.8 after every 8 epochs without a better monitor.

    Attributes:
        settings: the section `train`.
        steps: of one epoch.
        factor: what plateau has come to.
    """

    settings: TrainSettings
    steps: int
    factor: float = field(default=1.0, init=False)

    def rate(self, step: int) -> float:
        warmup = self.settings.warmup_epochs * self.steps
        total = self.settings.epochs * self.steps
        if step + 1 < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        if self.settings.schedule == "plateau":
            return self.settings.learning_rate * self.factor
        progress = (step - warmup) / max(total - warmup, 1)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))

    def epoch_ended(self, stale: int) -> None:
        if stale and stale % PLATEAU_EPOCHS == 0:
            self.factor *= PLATEAU_FACTOR

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def restore(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


@dataclass(frozen=True)
class Constant:
    """One rate for all steps."""

    value: float

    def rate(self, step: int) -> float:
        return self.value

    def epoch_ended(self, stale: int) -> None:
        """Nothing changes it."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""
