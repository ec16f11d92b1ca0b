"""Training, as a paragraph: batches, loss, step, validate, decide, save.

Owns the order of these and what is recorded of them. Receives objects; knows no paths, no settings file, no DVC.

A run that was killed goes on from its last checkpoint and ends with the same bytes: the order of the images and
every dropout mask come from the seed, the epoch and the step alone.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from pipeline.captioners.captioner import Captioner
from pipeline.errors import DivergedError
from pipeline.training.batches import Batch, CaptionedImages
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.losses import captioning_loss
from pipeline.training.schedule import Schedule
from pipeline.training.settings import TrainSettings
from pipeline.training.validation import Validation

Record = dict[str, float]
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass
class Sums:
    """An epoch so far."""

    loss: float = 0.0
    penalty: float = 0.0
    top5: int = 0
    words: int = 0
    steps: int = 0


@dataclass
class Progress:
    """Where a training stands; what a restart needs beside the weights and the optimiser's state."""

    epoch: int = 0
    sums: Sums = field(default_factory=Sums)
    history: list[Record] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - 1 - self.best_epoch

    def state(self) -> dict[str, Any]:
        return {**vars(self), "sums": vars(self.sums).copy(), "history": list(self.history)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Progress":
        return cls(**{**state, "sums": Sums(**state["sums"])})


class Training:
    """One training of one decoder.

    Args:
        captioner: with its first weights, on its device.
        settings: the section `train`.
        images: the training images.
        validation: judges every epoch.
        checkpoint: where the state is kept.
        precision: what the products are computed in; weights and optimiser are float32.
        tell: called after every epoch with the records so far, and with what may not enter an output (captions/s,
            the share of time waiting for data); once at a restart, with nothing measured.
    """

    def __init__(
        self,
        captioner: Captioner,
        settings: TrainSettings,
        images: CaptionedImages,
        validation: Validation,
        checkpoint: Checkpoint,
        precision: torch.dtype,
        tell: Callable[[list[Record], Record], None],
    ) -> None:
        self.captioner, self.settings, self.images = captioner, settings, images
        self.validation, self.checkpoint, self.precision, self.tell = validation, checkpoint, precision, tell
        self.device = images.regions.device
        self.optimiser = torch.optim.AdamW(
            captioner.parameters(), lr=0.0, weight_decay=settings.weight_decay, fused=True
        )
        self.steps = math.ceil(len(images) / settings.batch_images)
        self.schedule = Schedule(settings, self.steps)
        self.progress = Progress()

    def run(self) -> list[Record]:
        """Train to the end, or until patience ends; the captioner is left with the best epoch's weights.

        Returns:
            One record an epoch.

        Raises:
            DivergedError: the loss is no longer a number; the last good state is kept.
        """
        self._resume()
        if self.progress.history:
            self.tell(self.progress.history, {})
        while self.progress.epoch < self.settings.epochs and self.progress.stale < self.settings.patience:
            measured = self._epoch()
            record = self._validate()
            self._decide(record)
            self.checkpoint.save("state", self._state())
            self.tell(self.progress.history, measured)
        best = self.checkpoint.load("best", self.device)
        assert best is not None, "every training has a best epoch"
        self.captioner.load_state_dict(best["captioner"])
        return self.progress.history

    def _epoch(self) -> Record:
        sums, epoch = self.progress.sums, self.progress.epoch
        started = saved = time.monotonic()
        waited, captions, first = 0.0, 0, sums.steps
        batches = self.images.epoch(self.settings.batch_images, self.settings.seed, epoch, first)
        bar = tqdm(total=self.steps, initial=first, desc=f"epoch {epoch + 1}/{self.settings.epochs}", unit="step")
        with bar:
            for _ in range(first, self.steps):
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                self._step(batch)
                captions += int((batch.lengths > 0).sum())
                elapsed = time.monotonic() - started
                bar.set_postfix_str(f"loss {sums.loss / sums.words:.3f}, {captions / elapsed:.0f} captions/s")
                bar.update()
                if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS and sums.steps < self.steps:
                    self.checkpoint.save("state", self._state())
                    saved = time.monotonic()
        elapsed = time.monotonic() - started
        return {"seconds": elapsed, "captions_per_second": captions / max(elapsed, 1e-9), "waiting": waited / elapsed}

    def _step(self, batch: Batch) -> None:
        sums = self.progress.sums
        step = self.progress.epoch * self.steps + sums.steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        generator = torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + step)
        with self._precise():
            output = self.captioner(batch.regions, batch.captions, batch.lengths, generator)
            loss = captioning_loss(output, batch.captions, batch.lengths, self.settings.label_smoothing)
        total = loss.words + self.settings.attention_penalty * loss.penalty
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.captioner.parameters(), self.settings.clip_norm)
        if not math.isfinite(total.item()) or not math.isfinite(norm.item()):
            raise self._diverged(total.item(), norm.item())
        self.optimiser.step()
        self.optimiser.zero_grad()
        sums.loss += loss.words.item() * loss.count
        sums.penalty += loss.penalty.item()
        sums.top5 += int(loss.top5)
        sums.words += loss.count
        sums.steps += 1

    def _validate(self) -> Record:
        sums = self.progress.sums
        step = (self.progress.epoch + 1) * self.steps - 1
        scores = self.validation(self.captioner, self._precise)
        record = {
            "train/loss": sums.loss / sums.words,
            "train/penalty": sums.penalty / sums.steps,
            "train/top5_accuracy": 100 * sums.top5 / sums.words,
            "train/learning_rate": self.schedule.rate(step),
            **{f"validation/{name}": value for name, value in scores.items()},
        }
        self.progress.history.append(record)
        return record

    def _decide(self, record: Record) -> None:
        """Keep the weights if they are the best so far; slow down if nothing gets better."""
        score = record[f"validation/{self.settings.monitor}"]
        if score > self.progress.best:
            self.progress.best, self.progress.best_epoch = score, self.progress.epoch
            self.checkpoint.save("best", {"captioner": self.captioner.state_dict()})
        self.progress.epoch += 1
        self.progress.sums = Sums()
        self.schedule.epoch_ended(self.progress.stale)

    def _precise(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _state(self) -> dict[str, Any]:
        return {
            "captioner": self.captioner.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state(),
            "progress": self.progress.state(),
        }

    def _resume(self) -> None:
        state = self.checkpoint.load("state", self.device)
        if state is None:
            return
        self.captioner.load_state_dict(state["captioner"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.restore(state["schedule"])
        self.progress = Progress.of(state["progress"])

    def _diverged(self, loss: float, norm: float) -> DivergedError:
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.sums.steps + 1} of {self.steps}"
        return DivergedError(
            f"Training stopped at {where}: the loss is {loss} and the gradient's norm {norm}, where numbers were "
            f"expected. The last good state is kept in {self.checkpoint.folder}. Lower train.learning_rate "
            f"({self.settings.learning_rate:g}) or train.clip_norm ({self.settings.clip_norm:g}), or set "
            "train.precision to float32."
        )
