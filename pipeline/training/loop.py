"""Training, as a paragraph: batches, loss, step, validate, decide, save.

Owns the order of these and what is recorded of them, for one decoder or for several that take the same batches.
Receives objects; knows no paths, no settings file, no DVC.

A run that was killed goes on from its last checkpoint and ends with the same bytes: the order of the images and
every dropout mask come from the seeds, the epoch and the batch alone. For the same reason it ends with the same bytes
whichever others are trained beside it.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.captioners.captioner import Captioner
from pipeline.errors import ClusterError, DivergedError
from pipeline.training.batches import Batch, CaptionedImages
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.losses import captioning_loss
from pipeline.training.progress import Progress, Record
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.schedule import Schedule
from pipeline.training.settings import TrainSettings
from pipeline.training.validation import SCORES, Validation

Teller = Callable[[list[Record], Record], None]
_LOOK = 50  # steps between two looks at a GPU, each of which waits until it has done all it was given


def untold(history: list[Record], measured: Record) -> None:
    """Tell nobody of an epoch."""


def train(trainings: Sequence["Training"]) -> dict["Training", DivergedError]:
    """Train decoders together, each to its end: every batch is read once, and taken by all who wait for it.

    Args:
        trainings: of one order of images (`batch_images` and `order_seed`); they may stand at different batches.

    Returns:
        The trainings whose loss is no longer a number; the others have gone on without them.
    """
    failed: dict[Training, DivergedError] = {}
    for training in trainings:
        training.resume()
    while active := [one for one in trainings if not one.over and one not in failed]:
        _epoch(active, failed)
    return failed


def _epoch(active: Sequence["Training"], failed: dict["Training", DivergedError]) -> None:
    """The epoch of those that are furthest behind, joined by those that stand within it where they stand."""
    epoch, first = min(one.position for one in active)
    total, batches = active[0].batches, active[0].batches_of(epoch, first)
    waited, captions, started = 0.0, 0, time.monotonic()
    with tqdm(total=total, initial=first, desc=f"epoch {epoch + 1}", unit="batch", disable=not _shown(active)) as bar:
        for number in range(first, total):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            active = _each(active, failed, (epoch, number), methodcaller("take", batch))
            if not active:
                return
            captions += int(_counted(batch)[1]) * active[0].ranks.count  # about: all have as many images
            losses = " ".join(f"{one.loss:.3f}" for one in active)
            bar.set_postfix_str(f"loss {losses}, {captions / (time.monotonic() - started):.0f} captions/s")
            bar.update()
        active = _each(active, failed, (epoch, total), methodcaller("look"))
    elapsed = max(time.monotonic() - started, 1e-9)
    measured = {"seconds": elapsed, "captions_per_second": captions / elapsed, "waiting": waited / elapsed}
    _each(active, failed, (epoch, total), methodcaller("end_epoch", measured))


def _each(
    active: Sequence["Training"],
    failed: dict["Training", DivergedError],
    position: tuple[int, int],
    act: Callable[["Training"], None],
) -> Sequence["Training"]:
    """Let all that stand at a position act; returns those that have not failed."""
    for one in active:
        if one.position == position:
            try:
                act(one)
            except DivergedError as error:
                failed[one] = error
    return [one for one in active if one not in failed]


def _shown(active: Sequence["Training"]) -> bool:
    return all(one.ranks.first for one in active)


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
        ranks: the processes that share this training; the first validates and saves.
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
    ) -> None:
        self.captioner, self.settings, self.images = captioner, settings, images
        self.validation, self.checkpoint, self.precision, self.tell = validation, checkpoint, precision, tell
        self.ranks, self.device = ranks, images.regions.device
        self.optimiser = torch.optim.AdamW(
            captioner.parameters(), lr=0.0, weight_decay=settings.weight_decay, fused=True
        )
        self.batches = math.ceil(len(images) / settings.batch_images)
        self.steps = math.ceil(self.batches / settings.accumulate)
        self.schedule = Schedule(settings, self.steps)
        self.progress = Progress.start(self.device)
        self.loss = math.nan
        self._between_looks = 1 if self.device.type == "cpu" else _LOOK
        self._group: list[Batch] = []
        self._latest = torch.zeros(4, dtype=torch.float64, device=self.device)

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or patience has ended."""
        return self.progress.epoch >= self.settings.epochs or self.progress.stale >= self.settings.patience

    @property
    def position(self) -> tuple[int, int]:
        """The epoch and the batch that are awaited."""
        return self.progress.epoch, self.progress.batches + len(self._group)

    def run(self) -> list[Record]:
        """Train to the end, or until patience ends; the captioner is left with the best epoch's weights.

        Returns:
            One record an epoch.

        Raises:
            DivergedError: the loss is no longer a number; the last good state is kept.
        """
        for error in train([self]).values():
            raise error
        self.ranks.meet()  # until the first has saved it
        best = self.checkpoint.load("best", self.device)
        assert best is not None, "every training has a best epoch"
        self.captioner.load_state_dict(best["captioner"])
        return self.progress.history

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
        """One step of the optimiser, as if the batches, of all processes, were one.

        The loss is the mean cross-entropy over all words of the group, and the weighted mean penalty over all its
        captions; each batch's means count by its own share of words and of captions.
        """
        step = self.progress.epoch * self.steps + self.progress.batches // self.settings.accumulate
        for rates in self.optimiser.param_groups:
            rates["lr"] = self.schedule.rate(step)
        counts = torch.stack([_counted(batch) for batch in group]).sum(0)
        self.ranks.add([counts])
        words, captions = counts.tolist()
        sums = torch.zeros_like(self.progress.sums)
        for number, batch in enumerate(group):
            if len(batch.lengths):  # a batch of fewer images than processes has none for some
                sums += self._backward(batch, self._generator(number), words, captions)
        gradients = [_gradient(weights) for weights in self.captioner.parameters()]
        self.ranks.add(gradients)
        self.ranks.add([sums])
        norm = torch.nn.utils.clip_grad_norm_(self.captioner.parameters(), self.settings.clip_norm)
        self._update(step, sums[0] / words + self.settings.attention_penalty * sums[1], norm)
        self.progress.sums += sums
        self.progress.words += words

    def _backward(self, batch: Batch, generator: torch.Generator, words: int, captions: int) -> Tensor:
        """Add a batch's share of the gradient; returns its share of the sums."""
        with self._precise():
            output = self.captioner(batch.regions, batch.captions, batch.lengths, generator)
            loss = captioning_loss(output, batch.captions, batch.lengths, self.settings.label_smoothing)
        penalty = loss.penalty * (int(_counted(batch)[1]) / captions)
        (loss.words * (loss.count / words) + self.settings.attention_penalty * penalty).backward()
        with torch.no_grad():
            return torch.stack([part.double() for part in (loss.words.double() * loss.count, penalty, loss.top5)])

    def _generator(self, number: int) -> torch.Generator:
        """The source of a batch's dropout: another for every batch, and for every process."""
        batch = self.progress.epoch * self.batches + self.progress.batches + number
        seed = self.settings.seed * 1_000_003 + batch + (self.ranks.rank << 52)
        return torch.Generator(self.device).manual_seed(seed)

    def _update(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Let the optimiser step, unless this or an earlier loss is no number; nobody waits to know which.

        The fused optimiser looks at `found_inf` on the device, as `torch.amp.GradScaler` has it do.
        """
        bad = ~(loss.isfinite() & norm.isfinite())
        numbers = (bad.double(), torch.full_like(loss, step), loss, norm.double())
        self._latest = torch.where(self._latest[0] > 0, self._latest, torch.stack(numbers))
        self.optimiser.found_inf = self._latest[0].float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self.optimiser.zero_grad()

    def look(self) -> None:
        """See how the steps so far have ended.

        Raises:
            DivergedError: at one of them the loss was no number; no weight has changed since the one before it.
        """
        bad, step, loss, norm, total = torch.cat((self._latest, self.progress.sums[:1])).tolist()
        if bad:
            raise self._diverged(int(step), loss, norm)
        self.loss = total / max(self.progress.words, 1)

    def end_epoch(self, measured: Record) -> None:
        """Validate, decide, save and tell."""
        record = self._validate()
        self._decide(record)
        self._save()
        self.tell(self.progress.history, measured)

    def _validate(self) -> Record:
        progress = self.progress
        loss, penalty, top5 = progress.sums.tolist()
        scores = self.ranks.from_first(self._scores, len(SCORES))
        record = {
            "train/loss": loss / progress.words,
            "train/penalty": penalty / self.steps,
            "train/top5_accuracy": 100 * top5 / progress.words,
            "train/learning_rate": self.schedule.rate((progress.epoch + 1) * self.steps - 1),
            **{f"validation/{name}": value for name, value in zip(SCORES, scores, strict=True)},
        }
        progress.history.append(record)
        return record

    def _scores(self) -> list[float]:
        scores = self.validation(self.captioner, self._precise)
        return [scores[name] for name in SCORES]

    def _decide(self, record: Record) -> None:
        """Keep the weights if they are the best so far; slow down if nothing gets better."""
        score = record[f"validation/{self.settings.monitor}"]
        if score > self.progress.best:
            self.progress.best, self.progress.best_epoch = score, self.progress.epoch
            if self.ranks.first:
                self.checkpoint.save("best", {"captioner": self.captioner.state_dict()})
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
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state(),
            "progress": self.progress.state(),
        }

    def resume(self) -> None:
        """Go on from the last state, if there is one."""
        state = self.checkpoint.load("state", self.device)
        self.ranks.meet()  # nobody saves before everybody has read
        self._agree(state)
        if state is None:
            return
        self.captioner.load_state_dict(state["captioner"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.restore(state["schedule"])
        self.progress = Progress(**state["progress"])
        if self.progress.history:
            self.tell(self.progress.history, {})

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

    def _diverged(self, step: int, loss: float, norm: float) -> DivergedError:
        where = f"epoch {step // self.steps + 1}, step {step % self.steps + 1} of {self.steps}"
        return DivergedError(
            f"Training stopped at {where}: the loss is {loss} and the gradient's norm {norm}, where numbers were "
            f"expected. The last good state is kept in {self.checkpoint.folder}. Lower train.learning_rate "
            f"({self.settings.learning_rate:g}) or train.clip_norm ({self.settings.clip_norm:g}), or set "
            "train.precision to float32."
        )


def _counted(batch: Batch) -> Tensor:
    """Its words (END is one, START is not) and its captions: (2,) int64 on the CPU."""
    return torch.stack(((batch.lengths - 1).clamp(min=0).sum(), (batch.lengths > 0).sum()))


def _gradient(weights: Tensor) -> Tensor:
    """The gradient; zeros where no batch of this process had a use for the weights."""
    if weights.grad is None:
        weights.grad = torch.zeros_like(weights)
    return weights.grad
