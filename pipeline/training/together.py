"""Several trainings that take the same batches, and the phases of each.

Owns who takes which batch, what is shown meanwhile, and that one phase follows another. Does not know what a training
does with a batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import DivergedError
from pipeline.training.loop import Training
from pipeline.training.progress import Record

Phases = Sequence[Training]  # of one captioner, in their order


def train_phases(runs: Mapping[str, Phases]) -> dict[str, DivergedError]:
    """Train captioners phase after phase, all of one phase together; the weights left are the last phase's best.

    A phase that two runs share is trained once. One whose next phase has begun is over, and is not looked at again.

    Args:
        runs: the phases of each captioner by its name.

    Returns:
        The error of each whose loss is no longer a number.
    """
    failed: dict[str, DivergedError] = {}
    for number in range(max(map(len, runs.values()), default=0)):
        due = {name: phases[number] for name, phases in runs.items() if _due(phases, number) and name not in failed}
        once: dict[Path, Training] = {}
        for training in due.values():
            once.setdefault(training.checkpoint.folder, training)
        errors = train(list(once.values()))
        by_place = {training.checkpoint.folder: error for training, error in errors.items()}
        for name, training in due.items():
            if training.checkpoint.folder in by_place:
                failed[name] = by_place[training.checkpoint.folder]
    return failed


def _due(phases: Phases, number: int) -> bool:
    return number < len(phases) and not any(later.checkpoint.has("state") for later in phases[number + 1 :])


def train_alone(*phases: Training) -> list[Record]:
    """Train one captioner, phase after phase; returns one record an epoch.

    Raises:
        DivergedError: the loss is no longer a number; what was saved is kept.
    """
    for error in train_phases({"": phases}).values():
        raise error
    return phases[-1].progress.history


def train(trainings: Sequence[Training]) -> dict[Training, DivergedError]:
    """Train decoders together, each to its end: every batch is read once, and taken by all who wait for it.

    Each is left with its best epoch's weights.

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
    for training in trainings:
        if training not in failed:
            training.conclude()
    return failed


def _epoch(active: Sequence[Training], failed: dict[Training, DivergedError]) -> None:
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
            captions += active[0].phase.captions_of(batch) * active[0].ranks.count  # about: all have as many images
            rate = captions / (time.monotonic() - started)
            bar.set_postfix_str(f"{', '.join(one.told for one in active)}, {rate:.0f} captions/s")
            bar.update()
        active = _each(active, failed, (epoch, total), methodcaller("look"))
    elapsed = max(time.monotonic() - started, 1e-9)
    measured = {"seconds": elapsed, "captions_per_second": captions / elapsed, "waiting": waited / elapsed}
    _each(active, failed, (epoch, total), methodcaller("end_epoch", measured))


def _each(
    active: Sequence[Training],
    failed: dict[Training, DivergedError],
    position: tuple[int, int],
    act: Callable[[Training], None],
) -> Sequence[Training]:
    """Let all that stand at a position act; returns those that have not failed."""
    for one in active:
        if one.position == position:
            try:
                act(one)
            except DivergedError as error:
                failed[one] = error.with_traceback(None)  # whose frames would hold the training's whole memory
    return [one for one in active if one not in failed]


def _shown(active: Sequence[Training]) -> bool:
    return all(one.ranks.first for one in active)
