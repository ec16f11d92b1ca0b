"""Stage train: feature cache and tokens in, captioner out.

Owns which files the stage reads and writes, what identifies a run in progress, and what it tells. Loads no image and
no encoder: the cache is all it knows of them.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
import torch
from dvclive.live import Live

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.trained import CaptionerConfig, TrainedCaptioner, write_captioner
from pipeline.datasets.dataset import Dataset, read_dataset
from pipeline.errors import DataError
from pipeline.features.grid import decoder_grid
from pipeline.features.integrity import sweep
from pipeline.features.reader import FeatureReader
from pipeline.features.store import quantisation_json
from pipeline.files import Workspace, lock, replacing_folder, sha256, sha256_of_json, under_dvc
from pipeline.hardware import choose_precision, find_device
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import Vocabulary
from pipeline.language.words import tokenize
from pipeline.training.batches import CaptionedImages, Regions
from pipeline.training.checkpoint import Checkpoint, train_lock
from pipeline.training.loop import Record, Training
from pipeline.training.settings import TrainSettings
from pipeline.training.validation import Validation
from pipeline.version import VERSION


def run(workspace: Workspace, settings: TrainSettings) -> None:
    """Train a decoder from the cache into `models/captioner/`, and record every epoch in `results/train/`.

    Args:
        workspace: reads `data/`, writes `models/captioner/` and `results/train/`.
        settings: the section `train`.
    """
    with lock(train_lock(workspace), "training"):
        if under_dvc():  # by hand nobody has taken the store over: the next `dvc repro` clears it and needs the work
            sweep(workspace)
        device = find_device(settings.device, "train.device")
        precision = choose_precision(settings.precision, device, "train.precision", ("float32", "bfloat16"))
        dataset, reader = read_dataset(workspace.dataset), FeatureReader(workspace.features)
        reader.require_ids(dataset.ids)
        config, vocabulary = _config(workspace, settings, reader)
        torch.manual_seed(settings.seed)
        captioner = build_captioner(config.decoder, config.shape, config.options).to(device)
        key = _key(workspace, settings, config, f"{precision} on {device}")
        checkpoint = Checkpoint(workspace.work("train") / key[:16])
        _introduce(captioner, config, device, precision, checkpoint)
        regions = Regions(reader, config.grid, device, getattr(torch, precision))
        images, validation = _data(workspace, settings, dataset, vocabulary, regions)
        with _Live(str(workspace.train_results), resume=False, report=None, save_dvc_exp=False, dvcyaml=None) as live:
            tell = _teller(live, workspace)
            training = Training(captioner, settings, images, validation, checkpoint, regions.dtype, tell)
            training.run()
        with replacing_folder(workspace.captioner) as folder:
            write_captioner(folder, TrainedCaptioner(captioner, config, vocabulary))
        checkpoint.finish()
        _conclude(training, settings)


class _Live(Live):
    """DVCLive's files without its look at git and DVC, which fails in a repository that has no commit yet."""

    def _init_dvc(self) -> None:
        pass


def _config(workspace: Workspace, settings: TrainSettings, reader: FeatureReader) -> tuple[CaptionerConfig, Vocabulary]:
    vocabulary = Vocabulary.read(workspace.tokens / "vocabulary.json")
    shape = DecoderShape(
        vocabulary_size=len(vocabulary.words),
        channels=reader.channels,
        embedding_size=settings.embedding_size,
        attention_size=settings.attention_size,
        hidden_size=settings.hidden_size,
        dropout=settings.dropout,
    )
    config = CaptionerConfig(
        decoder=settings.decoder,
        options=settings.decoder_options,
        shape=shape,
        grid=decoder_grid(reader.grid, settings.grid),
        vocabulary=vocabulary.fingerprint,
        features=reader.fingerprint,
        encoding=reader.fields,
        versions={"freezeframe": VERSION, "torch": torch.__version__},
        quantisation=quantisation_json(reader.quantisation),
    )
    return config, vocabulary


def _key(workspace: Workspace, settings: TrainSettings, config: CaptionerConfig, arithmetic: str) -> str:
    """What determines the bytes of this training: a run in progress of any other key is not gone on with."""
    root = Path(__file__).parent.parent
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    code = sorted(path for path in map(Path, filter(None, loaded)) if _is_ours(path, root))
    return sha256_of_json(
        {
            "settings": asdict(settings),
            "config": asdict(config),
            "arithmetic": arithmetic,
            "threads": torch.get_num_threads(),
            "captions": sha256(workspace.tokens / "captions.npz"),
            "dataset": sha256(workspace.dataset / "dataset.jsonl"),
            "features": sha256(workspace.features / "manifest.json"),
            "code": {str(path.relative_to(root)): sha256(path) for path in code},
        }
    )


def _is_ours(file: Path, root: Path) -> bool:
    return file.is_relative_to(root / "pipeline") or file.is_relative_to(root / "stages")


def _data(
    workspace: Workspace, settings: TrainSettings, dataset: Dataset, vocabulary: Vocabulary, regions: Regions
) -> tuple[CaptionedImages, Validation]:
    captions = EncodedCaptions.read(workspace.tokens / "captions.npz")
    images = {split: CaptionedImages(captions, dataset.rows(split), regions) for split in ("train", "validation")}
    empty = [split for split, part in images.items() if not len(part)]
    if empty:
        raise DataError(
            f"The data set has no {' and no '.join(empty)} images with captions; training needs both. "
            "Give a split that has them (data.splits), or more images."
        )
    rows = dataset.rows("validation")
    if settings.monitor == "cider" and len(rows) == 1:
        raise DataError(
            "train.monitor is cider, which is undefined for one validation image: no epoch would be better than the "
            "first. Set train.monitor to bleu4, or give more validation images (data.splits)."
        )
    references = [[tokenize(caption) for caption in dataset.examples[row].captions] for row in rows]
    return images["train"], Validation(images["validation"], rows, references, vocabulary, settings.batch_images)


def _introduce(
    captioner: torch.nn.Module, config: CaptionerConfig, device: torch.device, precision: str, checkpoint: Checkpoint
) -> None:
    count = sum(weights.numel() for weights in captioner.parameters())
    place = "boxes" if config.grid is None else f"{config.grid[0]} x {config.grid[1]} regions"
    click.echo(
        f"Training a {config.decoder} decoder of {count / 1e6:.1f} million weights on {place} of "
        f"{config.shape.channels} channels, {config.shape.vocabulary_size:,} words, {precision} on {device}."
    )
    if (checkpoint.folder / "state.pt").exists():
        click.echo("Going on from where an earlier run of the same settings, inputs and code was stopped.")


def _teller(live: Live, workspace: Workspace) -> Callable[[list[Record], Record], None]:
    """Record epochs in DVCLive's layout; what is measured of time goes to the log, which no output may hold."""

    def tell(history: list[Record], measured: Record) -> None:
        while live.step < len(history):
            for name, value in history[live.step].items():
                live.log_metric(name, value)
            live.next_step()
        record = history[-1]
        click.echo(
            f"epoch {len(history)}: loss {record['train/loss']:.3f}, validation loss {record['validation/loss']:.3f}, "
            f"top-5 {record['train/top5_accuracy']:.1f} %, BLEU-4 {record['validation/bleu4']:.2f}, "
            f"CIDEr {record['validation/cider']:.1f}"
            + (f" ({measured['captions_per_second']:.0f} captions/s)" if measured else "")
        )
        workspace.log("train", {"epoch": len(history), **measured})

    return tell


def _conclude(training: Training, settings: TrainSettings) -> None:
    progress = training.progress
    best = progress.history[progress.best_epoch]
    click.echo(
        f"Kept epoch {progress.best_epoch + 1} of {len(progress.history)}: greedy validation captions score BLEU-4 "
        f"{best['validation/bleu4']:.2f} and CIDEr {best['validation/cider']:.1f} (chosen by {settings.monitor})."
    )
