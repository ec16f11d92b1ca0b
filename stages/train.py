"""Stage train: feature cache and tokens in, captioner out.

Owns which files the stage writes and what it tells. Loads no image and no encoder.
"""

import time

import click
from dvclive.live import Live

from pipeline.captioners import native
from pipeline.features.integrity import sweep
from pipeline.files import Workspace, lock, under_dvc
from pipeline.hardware import find_device
from pipeline.training.checkpoint import train_lock
from pipeline.training.inputs import Inputs, Prepared
from pipeline.training.loop import Teller, Training
from pipeline.training.progress import Record, told
from pipeline.training.ranks import Ranks, joined
from pipeline.training.settings import TrainSettings
from pipeline.training.together import train_alone


def run(workspace: Workspace, settings: TrainSettings) -> None:
    """Train a decoder from the cache into `models/captioner/`, and record every epoch in `results/train/`.

    Under `torchrun` several processes train it, each on its share of every batch; the first tells and writes.

    Args:
        workspace: reads `data/`, writes `models/captioner/` and `results/train/`.
        settings: the section `train`.
    """
    with joined() as ranks:
        if not ranks.first:
            train_alone(*Inputs(workspace, settings, ranks).prepare(settings).phases)
            return
        with lock(train_lock(workspace), "training"):
            _train(workspace, settings, ranks)


def _train(workspace: Workspace, settings: TrainSettings, ranks: Ranks) -> None:
    if under_dvc():  # a stage run by hand deletes nothing
        sweep(workspace)
    if find_device(settings.device, "train.device").type == "cpu":
        _compile()
    inputs = Inputs(workspace, settings, ranks)
    prepared = inputs.prepare(settings)
    _introduce(prepared, inputs)
    with _Live(str(workspace.train_results), resume=False, report=None, save_dvc_exp=False, dvcyaml=None) as live:
        prepared.tell(_teller(live, workspace))
        train_alone(*prepared.phases)
        _summarise(live, prepared.phases[-1])
    prepared.write(workspace.captioner)
    for training in prepared.phases:
        training.checkpoint.finish()
    _conclude(prepared.phases[-1])


class _Live(Live):
    """DVCLive's files without its look at git and DVC, which fails in a repository that has no commit yet."""

    def _init_dvc(self) -> None:
        pass


def _compile() -> None:
    """Compile the decoder's loops where no earlier run has, and tell."""
    started = time.monotonic()
    if native.library() is None:
        click.echo(
            f"No C++ compiler works here ({native.complaints[-1]}; CXX names one): plain torch does the decoder's "
            "loops, more slowly."
        )
    elif time.monotonic() - started > 1:
        click.echo(f"Compiled the decoder's loops in {time.monotonic() - started:.0f} s; later runs find them.")


def _introduce(prepared: Prepared, inputs: Inputs) -> None:
    config, first = prepared.config, prepared.phases[0]
    count = sum(weights.numel() for weights in first.captioner.parameters())
    place = "boxes" if config.grid is None else f"{config.grid[0]} x {config.grid[1]} regions"
    among = "" if inputs.ranks.count == 1 else f", in {inputs.ranks.count} processes"
    click.echo(
        f"Training a {config.decoder} decoder of {count / 1e6:.1f} million weights on {place} of "
        f"{config.shape.channels} channels, {config.shape.vocabulary_size:,} words, {inputs.precision} on "
        f"{inputs.device}{among}."
    )
    if len(prepared.phases) == 2:
        critical = first.settings.self_critical
        click.echo(
            f"After cross-entropy {critical.epochs} epochs of self-critical training: {critical.samples} captions an "
            "image are drawn and rewarded for their CIDEr-D."
        )
    _go_on(prepared)


def _go_on(prepared: Prepared) -> None:
    """Tell what is there of an earlier run."""
    first, last = prepared.phases[0].checkpoint, prepared.phases[-1].checkpoint
    if last.has("state") or first.has("state"):
        click.echo("Going on from where an earlier run of the same settings, inputs and code was stopped.")
    elif first.has("best"):
        click.echo("Cross-entropy is not trained again: the best weights of an earlier run of it were kept.")


def _teller(live: Live, workspace: Workspace) -> Teller:
    """Record epochs in DVCLive's layout; what is measured of time goes to the log, which no output may hold."""

    def tell(history: list[Record], measured: Record) -> None:
        if live.step == len(history):  # a phase begins where the one before has ended
            return
        while live.step < len(history):
            for name, value in history[live.step].items():
                live.log_metric(name, value)
            live.next_step()
        rate = f" ({measured['captions_per_second']:.0f} captions/s)" if measured else ""
        click.echo(f"{told(history)}{rate}")
        workspace.log("train", {"epoch": len(history), **measured})

    return tell


def _summarise(live: Live, training: Training) -> None:
    """Let `metrics.json`, which experiments are compared by, speak of the weights that were kept."""
    progress = training.progress
    kept: dict[str, dict[str, float]] = {}
    for name, value in progress.history[progress.best_epoch].items():
        group, _, key = name.partition("/")
        kept.setdefault(group, {})[key] = value
    live.summary = {**kept, "kept_epoch": progress.best_epoch + 1, "step": live.summary["step"]}


def _conclude(training: Training) -> None:
    progress = training.progress
    best = progress.history[progress.best_epoch]
    click.echo(
        f"Kept epoch {progress.best_epoch + 1} of {len(progress.history)}: greedy validation captions score BLEU-4 "
        f"{best['validation/bleu4']:.2f} and CIDEr {best['validation/cider']:.1f} (chosen by "
        f"{training.settings.monitor})."
    )
