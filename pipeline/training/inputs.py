"""What trainings learn from: the cache, the captions and the vocabulary of a workspace, opened once.

Owns the way from a workspace and the section `train` to a `Training`, for the stage train and for a sweep alike, and
what identifies a training in progress. Loads no image and no encoder: the cache is all it knows of them.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.captioners import native
from pipeline.captioners.build import build_captioner, start_small
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.trained import CaptionerConfig, TailConfig, TrainedCaptioner, write_captioner
from pipeline.datasets.dataset import read_dataset
from pipeline.errors import DataError
from pipeline.features.grid import decoder_grid
from pipeline.features.memory import keep
from pipeline.features.reader import FeatureReader
from pipeline.features.store import quantisation_json
from pipeline.files import Workspace, replacing_folder, sha256, sha256_of_json
from pipeline.hardware import choose_precision, find_device, use_large_pages
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import Vocabulary
from pipeline.language.words import tokenize
from pipeline.training.batches import CaptionedImages, Regions
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Teller, Training, untold
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.reward import CiderReward
from pipeline.training.self_critical import SelfCritical
from pipeline.training.settings import TrainSettings
from pipeline.training.tails import Tails
from pipeline.training.validation import Validation
from pipeline.training.view import View
from pipeline.version import VERSION

# Settings that say which batches there are, of what: trainings that share their batches share these.
SHARED = ("grid", "batch_images", "order_seed", "shuffle_window", "cache", "device", "precision")
NOT_FIRST = ("cache", "self_critical")  # settings that change nothing of the first phase
_ROOT = Path(__file__).parent.parent
# What a training runs of this project's code, loaded or not: one key whichever command asks.
_PACKAGES = ("training", "scoring", "features", "datasets", "captioners", "language")
_CODE = ("*.py", *(f"{package}/*.{kind}" for package in _PACKAGES for kind in ("py", "cpp", "hpp")))
_NEITHER = ("training/consensus.py", "features/likeness.py")  # what a finished captioner is searched with
_SECOND = ("captioners/sampling.py", "training/reward.py", "training/self_critical.py")  # the second phase's alone


@dataclass(frozen=True)
class Prepared:
    """Phases of a training that are ready to run, and what their one captioner will be stored with."""

    phases: tuple[Training, ...]
    config: CaptionerConfig
    vocabulary: Vocabulary

    def tell(self, teller: Teller) -> None:
        """Have every epoch told to someone."""
        for training in self.phases:
            training.tell = teller

    def write(self, folder: Path) -> None:
        """Write the captioner."""
        with replacing_folder(folder) as temporary:
            write_captioner(temporary, TrainedCaptioner(self.phases[-1].captioner, self.config, self.vocabulary))


class Inputs:
    """The inputs of every training that sees the same batches.

    Args:
        workspace: whose `data/` is read.
        settings: the section `train`; of `SHARED` alone if several trainings are prepared.
        ranks: the processes that share a training.

    Raises:
        FreezeframeError: something is missing, damaged, or of another data set.
    """

    def __init__(self, workspace: Workspace, settings: TrainSettings, ranks: Ranks = ALONE) -> None:
        use_large_pages()
        self.workspace, self.ranks = workspace, ranks
        device = find_device(settings.device, "train.device")
        self.dataset, self.reader = read_dataset(workspace.dataset), FeatureReader(workspace.features)
        self.reader.require_ids(self.dataset.ids)
        self.grid = decoder_grid(self.reader.grid, settings.grid)
        self.precision = choose_precision(settings.precision, device, "train.precision", ("float32", "bfloat16"))
        self.arithmetic = f"{self.precision} on {device}, {ranks.count} times {torch.get_num_threads()} threads"
        self.arithmetic += f", {native.identity()}" if device.type == "cpu" else ""
        self.device = ranks.device(device)
        self.tails = Tails(workspace, self.reader.fields)
        self.vocabulary = Vocabulary.read(workspace.tokens / "vocabulary.json")
        self.regions = Regions(self.reader, self.grid, self.device, getattr(torch, self.precision))
        captions = EncodedCaptions.read(workspace.tokens / "captions.npz")
        captions.require_dataset(sha256(workspace.dataset / "dataset.jsonl"))
        splits = {split: self.dataset.rows(split) for split in ("train", "validation")}
        keep(self.reader, sorted(row for own in splits.values() for row in own), settings.cache, ranks.count)
        self.images = {
            split: CaptionedImages(captions, own, self.regions, settings.shuffle_window)
            for split, own in splits.items()
        }
        empty = [split for split, part in self.images.items() if not len(part)]
        if empty:
            raise DataError(
                f"The data set has no {' and no '.join(empty)} images with captions; training needs both. "
                "Give a split that has them (data.splits), or more images."
            )
        rows = self.dataset.rows("validation")
        references = [[tokenize(caption) for caption in self.dataset.examples[row].captions] for row in rows]
        validated = self.images["validation"]
        self.validation = Validation(validated, rows, references, self.vocabulary, settings.batch_images)

    def prepare(self, settings: TrainSettings) -> Prepared:
        """The phases of a training of these settings; each goes on from where an earlier run of its key was stopped.

        Their `tell` is for the caller to set.

        Raises:
            DataError: the monitor or the reward is undefined for these images.
        """
        self._check(settings)
        config = self._config(settings)
        torch.manual_seed(settings.seed)
        decoder = build_captioner(config.decoder, config.shape, config.options)
        if settings.initial_weights == "small":
            start_small(decoder)
        captioner = self.tails.attach(decoder, settings.tail).to(self.device)
        view = View(config.native(self.reader.grid), config.grid, None, self.device, self.regions.dtype)
        captioner.look_through(view.pooling)
        phases: list[Training] = []
        for folder in self.works(settings):
            critical = SelfCritical(settings.self_critical, self.reward) if phases else None
            phases.append(
                Training(
                    captioner,
                    settings,
                    self.images["train"],
                    self.validation,
                    Checkpoint(folder),
                    self.regions.dtype,
                    untold,
                    self.ranks,
                    critical,
                    phases[-1].checkpoint if phases else None,
                )
            )
        return Prepared(tuple(phases), config, self.vocabulary)

    def works(self, settings: TrainSettings) -> list[Path]:
        """Where the work of each phase lies, the second within the first; the second is the last one's if there is one.

        Cross-entropy does not know what follows it, so it is trained once for all settings of the second phase.
        """
        first = self.workspace.work("train") / self._key(settings)[:16]
        if not settings.self_critical.epochs:
            return [first]
        second = {"settings": asdict(settings.self_critical), "code": {part: sha256(_ROOT / part) for part in _SECOND}}
        return [first, first / sha256_of_json(second)[:16]]

    @cached_property
    def reward(self) -> CiderReward:
        """CIDEr-D against all references of the training images, whichever of them cross-entropy learns from."""
        references = {
            row: [self.vocabulary.encode(tokenize(caption))[1:] for caption in self.dataset.examples[row].captions]
            for row in self.dataset.rows("train")
        }
        return CiderReward(references, len(self.vocabulary.words), self.device)

    def _check(self, settings: TrainSettings) -> None:
        if settings.monitor == "cider" and len(self.validation.rows) == 1:
            raise DataError(
                "train.monitor is cider, which is undefined for one validation image: no epoch would be better than "
                "the first. Set train.monitor to bleu4, or give more validation images (data.splits)."
            )
        if settings.self_critical.epochs and len(self.dataset.rows("train")) == 1:
            raise DataError(
                "train.self_critical rewards captions for their CIDEr-D, which is undefined for one training image. "
                "Set train.self_critical.epochs to 0, or give more training images (data.splits)."
            )

    def _key(self, settings: TrainSettings) -> str:
        """What determines the bytes of a first phase: a run in progress of any other key is not gone on with."""
        code = {path.relative_to(_ROOT).as_posix(): path for pattern in _CODE for path in _ROOT.glob(pattern)}
        return sha256_of_json(
            {
                "settings": {name: value for name, value in asdict(settings).items() if name not in NOT_FIRST},
                "config": asdict(self._config(settings)),
                "tail": self.tails.identity(settings.tail),
                "arithmetic": self.arithmetic,
                "captions": sha256(self.workspace.tokens / "captions.npz"),
                "dataset": sha256(self.workspace.dataset / "dataset.jsonl"),
                "features": sha256(self.workspace.features / "manifest.json"),
                "code": {name: sha256(path) for name, path in code.items() if name not in (*_SECOND, *_NEITHER)},
            }
        )

    def _config(self, settings: TrainSettings) -> CaptionerConfig:
        tail = self.tails.of(settings.tail)
        seen = self.reader if tail is None else tail
        shape = DecoderShape(
            vocabulary_size=len(self.vocabulary.words),
            channels=seen.channels,
            embedding_size=settings.embedding_size,
            attention_size=settings.attention_size,
            hidden_size=settings.hidden_size,
            dropout=settings.dropout,
        )
        return CaptionerConfig(
            decoder=settings.decoder,
            options=settings.decoder_options,
            shape=shape,
            grid=decoder_grid(seen.grid, settings.grid),
            vocabulary=self.vocabulary.fingerprint,
            features=self.reader.fingerprint,
            encoding=self.reader.fields,
            versions={"freezeframe": VERSION, "torch": torch.__version__},
            quantisation=quantisation_json(self.reader.quantisation),
            tail=TailConfig(settings.tail, tail.grid) if settings.tail and tail else None,
        )
