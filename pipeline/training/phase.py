"""What the phases of a training differ in.

Owns the one form that they share: which captions a batch teaches, the gradient of these, and what is told of it. Does
not know the optimiser, nor how many batches make a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner
from pipeline.training.batches import Batch
from pipeline.training.progress import Record
from pipeline.training.schedule import Schedule


@dataclass(frozen=True)
class Lesson:
    """Captions that a batch teaches.

    Attributes:
        batch: the captions and their regions.
        generator: the source of chance, the batch's own.
        rewards: (B, K) of the captions, if they are judged.
        advantages: (B, K), what a caption's log-probability is weighted by, if captions differ in that.
    """

    batch: Batch
    generator: torch.Generator
    rewards: Tensor | None = None
    advantages: Tensor | None = None


@dataclass(frozen=True)
class Totals:
    """What an epoch has come to.

    Attributes:
        sums: of the phase's own.
        words: that were taught.
        steps: of the optimiser.
    """

    sums: Sequence[float]
    words: int
    steps: int


class Phase(ABC):
    """A way to learn from batches.

    Attributes:
        epochs: at most.
        rates: the section of the settings that holds its learning rate.
        learning_rate: as set there.
    """

    epochs: int
    rates: str
    learning_rate: float

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """The learning rate at every step, for `steps` an epoch."""

    def captions_of(self, batch: Batch) -> int:
        """How many captions a batch teaches."""
        return int(batch.counts[1])

    @abstractmethod
    def lesson(self, captioner: Captioner, batch: Batch, generator: torch.Generator) -> Lesson:
        """What a batch teaches."""

    @abstractmethod
    def loss(self, captioner: Captioner, lesson: Lesson, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """A lesson's share of what a step makes smaller, and of the phase's sums.

        Args:
            captioner: that learns.
            lesson: one of those that make a step.
            counts: words and captions of all of them.

        Returns:
            A number to differentiate, and (3,) float64.
        """

    @abstractmethod
    def record(self, totals: Totals) -> Record:
        """What is recorded of an epoch."""

    @abstractmethod
    def told(self, totals: Totals) -> str:
        """The epoch so far in two words."""
