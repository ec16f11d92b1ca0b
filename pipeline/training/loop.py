"""One training, as a paragraph: batches, loss, step, average, validate, decide, save.

Owns the order of these and what is recorded of them, in one phase; `together` gives it its batches. Receives objects;
knows no paths, no settings file, no DVC, nor what a phase teaches.

A run that was killed goes on from its last checkpoint and ends with the same bytes: the order of the images and all
chance (dropout, samples) come from the seeds, the epoch and the batch alone. For the same reason it ends with the same
bytes whichever others are trained beside it.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pipeline.captioners.captioner import Captioner
from pipeline.errors import ClusterError, DivergedError
from pipeline.training.batches import Batch, CaptionedImages
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.cross_entropy import CrossEntropy
from pipeline.training.optimiser import Optimiser, Trouble
from pipeline.training.phase import Lesson, Phase, Totals
from pipeline.training.progress import Progress, Record
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.settings import TrainSettings
from pipeline.training.validation import SCORES, Validation

Teller = Callable[[list[Record], Record], None]
_LOOK = 50  # steps between two looks at a GPU, each of which waits until it has done all it was given
_APART = 0x9E3779B1  # between the seeds of two processes: golden section of 2^32, so that no two of them draw alike


def untold(history: list[Record], measured: Record) -> None:
    """Tell nobody of an epoch."""


class Training:
    """One phase of the training of one decoder.

    Args:
        captioner: with its first weights, on its device.
        settings: the section `train`.
        images: the training images.
        validation: judges every epoch.
        checkpoint: where the state is kept.
        precision: what the products are computed in; weights and optimiser are float32.
        tell: called after every epoch with the records so far, and with what may not enter an output (captions/s,
            the share of time waiting for data); once at a restart, with nothing measured.
        ranks: the processes that share this training; the first validates and saves.
        phase: what is learnt of a batch; None is cross-entropy.
        before: of the phase that this one goes on from, which is over when this one begins.
    """

    def __init__(
        self,
        captioner: Captioner,
        settings: TrainSettings,
        images: CaptionedImages,
        validation: Validation,
        checkpoint: Checkpoint,
        precision: torch.dtype,
        tell: Teller,
        ranks: Ranks = ALONE,
        phase: Phase | None = None,
        before: Checkpoint | None = None,
    ) -> None:
        self.captioner, self.settings, self.images = captioner, settings, images
        self.validation, self.checkpoint, self.precision, self.tell = validation, checkpoint, precision, tell
        self.ranks, self.device, self.before = ranks, images.regions.device, before
        self.phase = phase or CrossEntropy(settings)
        self.optimiser = Optimiser(captioner, settings, ranks, self.device)
        self.batches = math.ceil(len(images) / settings.batch_images)
        self.steps = math.ceil(self.batches / settings.accumulate)
        self.schedule = self.phase.schedule(self.steps)
        self.progress = Progress.start(self.device)
        self.told = ""
        self._between_looks = 1 if self.device.type == "cpu" else _LOOK
        self._group: list[Batch] = []

    @property
    def over(self) -> bool:
        """Whether all epochs of the phase are done, or patience has ended."""
        done = self.progress.epoch - self.progress.first
        return done >= self.phase.epochs or self.progress.stale >= self.settings.patience

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and the batch that are awaited."""
        return self.progress.epoch, self.progress.batches + len(self._group)

    def batches_of(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch, from `first` on: this process's share of each."""
        size, seed = self.settings.batch_images, self.settings.order_seed
        return self.images.epoch(size, seed, epoch, first, self.ranks.rank, self.ranks.count)

    def take(self, batch: Batch) -> None:
        """Take the batch that is awaited; with the last of `accumulate`, or of the epoch, comes a step.

        Raises:
            DivergedError: the loss is no longer a number (on a GPU, of one of the last steps).
        """
        self._group.append(batch)
        last = self.position[1] == self.batches
        if len(self._group) < self.settings.accumulate and not last:
            return
        self._step(self._group)
        self.progress.batches += len(self._group)
        self._group = []
        due = self.ranks.first and self.checkpoint.due and not last  # an epoch's last step is saved with its validation
        if due or math.ceil(self.progress.batches / self.settings.accumulate) % self._between_looks == 0:
            self.look()
        if due:
            self._save()

    def _step(self, group: Sequence[Batch]) -> None:
        """One step of the optimiser, as if the batches, of all processes, were one."""
        step = (self.progress.epoch - self.progress.first) * self.steps
        step += self.progress.batches // self.settings.accumulate
        # A batch of fewer images than processes has none for some.
        lessons = [self._lesson(number, batch) for number, batch in enumerate(group) if batch.rows]
        counts = torch.stack([torch.zeros(2, dtype=torch.int64), *(one.batch.counts for one in lessons)]).sum(0)
        self.ranks.add([counts])
        words, captions = counts.tolist()  # of all processes
        loss, sums = torch.zeros_like(self.progress.sums[0]), torch.zeros_like(self.progress.sums)
        for lesson in lessons:
            with self._precise():
                share, parts = self.phase.loss(self.captioner, lesson, (words, captions))
            share.backward()
            loss, sums = loss + share.detach(), sums + parts
        self.ranks.add([loss, sums])
        self.ranks.average(self.captioner.moving())
        self.optimiser.step(step, self.schedule.rate(step), loss)
        self.progress.sums += sums
        self.progress.words += words

    def _lesson(self, number: int, batch: Batch) -> Lesson:
        with self._precise():
            return self.phase.lesson(self.captioner, batch, self._generator(number))

    def _generator(self, number: int) -> torch.Generator:
        """The source of a batch's chance: another for every batch, and for every process."""
        batch = self.progress.epoch * self.batches + self.progress.batches + number
        seed = self.settings.seed * 1_000_003 + batch + self.ranks.rank * _APART
        return torch.Generator(self.device).manual_seed(seed % 2**32)  # torch's generator on a CPU reads no more bits

    def look(self) -> None:
        """See how the steps so far have ended.

        Raises:
            DivergedError: at one of them the loss was no number; no weight has changed since the one before it.
        """
        trouble, sums = self.optimiser.look(self.progress.sums)
        if trouble:
            raise self._diverged(trouble)
        self.told = self.phase.told(Totals(sums, self.progress.words, self.steps))

    def end_epoch(self, measured: Record) -> None:
        """Validate, decide, save and tell."""
        record = self._validate()
        self._decide(record)
        self._save()
        self.tell(self.progress.history, measured)

    def _validate(self) -> Record:
        progress = self.progress
        scores = self.ranks.from_first(self._scores, len(SCORES))
        record = {
            **self.phase.record(Totals(progress.sums.tolist(), progress.words, self.steps)),
            "train/learning_rate": self.schedule.rate((progress.epoch - progress.first + 1) * self.steps - 1),
            **{f"validation/{name}": value for name, value in zip(SCORES, scores, strict=True)},
        }
        progress.history.append(record)
        return record

    def _scores(self) -> list[float]:
        scores = self.validation(self.optimiser.average.captioner, self._precise)
        return [scores[name] for name in SCORES]

    def _decide(self, record: Record) -> None:
        """Keep the weights if they are the best so far; slow down if nothing gets better.

        A score that was reached before, such as the 0 of first epochs, is better with a lower validation loss.
        """
        score, best = record[f"validation/{self.settings.monitor}"], self.progress.best_epoch
        before = self.progress.history[best]["validation/loss"] if best >= 0 else math.inf
        if (score, -record["validation/loss"]) > (self.progress.best, -before):
            self.progress.best, self.progress.best_epoch = score, self.progress.epoch
            if self.ranks.first:
                self.checkpoint.save("best", {"captioner": self.optimiser.average.captioner.state_dict()})
        self.progress.epoch_ended()
        self.schedule.epoch_ended(self.progress.stale)

    def _precise(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _save(self) -> None:
        if self.ranks.first:
            self.checkpoint.save("state", self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "captioner": self.captioner.state_dict(),
            "optimiser": self.optimiser.state(),
            "schedule": self.schedule.state(),
            "progress": self.progress.state(),
        }

    def resume(self) -> None:
        """Go on from the last state, or from where the phase before has ended, if there is either."""
        state = self.checkpoint.load("state", self.device) or self._end_of(self.checkpoint)
        self.ranks.meet()  # nobody saves before everybody has read
        self._agree(state)
        if state is not None:
            self._restore(state)
        elif self.before is not None:
            self._begin()
        if self.progress.history:
            self.tell(self.progress.history, {})

    def _restore(self, state: dict[str, Any]) -> None:
        self.captioner.load_state_dict(state["captioner"])
        self.progress = Progress(**state["progress"])
        if "optimiser" in state:  # else the training is over, and only its end was kept
            self.optimiser.restore(state["optimiser"])
            self.schedule.restore(state["schedule"])

    def _begin(self) -> None:
        """Begin with the best weights of the phase before, which stay the best until others are better."""
        assert self.before is not None, "only a phase that follows another begins there"
        end = self._end_of(self.before)
        assert end is not None, "the phase before is over"
        self.captioner.load_state_dict(end["captioner"])
        self.optimiser.average.start()
        self.progress = Progress(**end["progress"])
        self.progress.first = self.progress.epoch
        if self.ranks.first:
            self.checkpoint.save("best", {"captioner": end["captioner"]})

    def conclude(self) -> list[Record]:
        """Take the best epoch's weights, and keep the records beside them: a next phase needs no more.

        Returns:
            One record an epoch, of the phases before as well.
        """
        self.ranks.meet()  # until the first has saved them
        best = self.checkpoint.load("best", self.device)
        assert best is not None, "every training has a best epoch"
        self.captioner.load_state_dict(best["captioner"])
        if self.ranks.first and best.get("progress", {}).get("epoch") != self.progress.epoch:
            self.checkpoint.save("best", {**best, "progress": self.progress.state()})
        return self.progress.history

    def _end_of(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """What `conclude` has kept."""
        best = checkpoint.load("best", self.device)
        return best if best is not None and "progress" in best else None

    def _agree(self, state: dict[str, Any] | None) -> None:
        """Refuse to train on from different places in different processes."""
        progress = {} if state is None else state["progress"]
        place = zlib.crc32(self.checkpoint.folder.name.encode()), progress.get("epoch", 0), progress.get("batches", 0)
        own = [float(part) for part in place]
        if own != self.ranks.from_first(lambda: own, len(own)):
            raise ClusterError(
                f"Process {self.ranks.rank} of {self.ranks.count} would go on from another place than the first: they "
                f"see different work in {self.checkpoint.folder}, or compute differently (compilers, processors, "
                "threads). Let all run on machines of one kind that share this folder."
            )

    def _diverged(self, trouble: Trouble) -> DivergedError:
        epoch, step = divmod(trouble.step, self.steps)
        where = f"epoch {self.progress.first + epoch + 1}, step {step + 1} of {self.steps}"
        kept = f"The state saved last is in {self.checkpoint.folder}. " if self.checkpoint.has("state") else ""
        return DivergedError(
            f"Training stopped at {where}: the loss is {trouble.loss} and the gradient's norm {trouble.norm}, where "
            f"numbers were expected. {kept}Lower {self.phase.rates}.learning_rate ({self.phase.learning_rate:g}) or "
            f"train.clip_norm ({self.settings.clip_norm:g}), or set train.precision to float32; with other settings "
            "training begins anew."
        )
