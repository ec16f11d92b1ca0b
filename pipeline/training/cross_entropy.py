"""The first phase: every caption of a batch is made likelier, word by word.

Owns its loss: cross-entropy, the doubly stochastic penalty, and what a decoder adds of its own.
"""

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner
from pipeline.training.batches import Batch
from pipeline.training.losses import captioning_loss
from pipeline.training.phase import Lesson, Phase, Totals
from pipeline.training.progress import Record
from pipeline.training.schedule import Schedule, WarmedUp
from pipeline.training.settings import TrainSettings


class CrossEntropy(Phase):
    """Teacher forcing; the sums are of the loss over words, the penalty over steps, and words among the likeliest five.

    The loss is the mean cross-entropy over all words of a step, and the weighted mean penalty over all its captions;
    each batch's means count by its own share of words and of captions.
    """

    rates = "train"

    def __init__(self, settings: TrainSettings) -> None:
        self.settings, self.epochs, self.learning_rate = settings, settings.epochs, settings.learning_rate

    def schedule(self, steps: int) -> Schedule:
        return WarmedUp(self.settings, steps)

    def lesson(self, captioner: Captioner, batch: Batch, generator: torch.Generator) -> Lesson:
        return Lesson(batch, generator)

    def loss(self, captioner: Captioner, lesson: Lesson, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        batch, (words, captions) = lesson.batch, counts
        output = captioner.train()(batch.regions, batch.captions, batch.lengths, lesson.generator)
        loss = captioning_loss(output, batch.captions, batch.lengths, self.settings.label_smoothing)
        penalty = loss.penalty * (int(batch.counts[1]) / captions)
        whole = loss.words * (loss.count / words) + self.settings.attention_penalty * penalty
        own = captioner.own_loss(output, loss.each.detach(), batch.lengths)
        if own is not None:
            whole = whole + own * (loss.count / words)
        parts = (loss.words.detach().double() * loss.count, penalty.detach(), loss.top5)
        return whole, torch.stack([part.double() for part in parts])

    def record(self, totals: Totals) -> Record:
        loss, penalty, top5 = totals.sums
        return {
            "train/loss": loss / totals.words,
            "train/penalty": penalty / totals.steps,
            "train/top5_accuracy": 100 * top5 / totals.words,
        }

    def told(self, totals: Totals) -> str:
        return f"loss {totals.sums[0] / totals.words:.3f}"
