"""What trainings learn from: the cache, the captions and the vocabulary of a workspace, opened once.

Owns the way from a workspace and the section `train` to a `Training`, for the stage train and for a sweep alike, and
what identifies a training in progress. Loads no image and no encoder: the cache is all it knows of them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.captioners import native
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.captioners.trained import CaptionerConfig, TrainedCaptioner, write_captioner
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
from pipeline.training.loop import Training, untold
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.settings import TrainSettings
from pipeline.training.validation import Validation
from pipeline.version import VERSION

# Settings that say which batches there are, of what: trainings that share their batches share these.
SHARED = ("grid", "batch_images", "order_seed", "shuffle_window", "cache", "device", "precision")
NO_BYTES = ("cache",)  # settings that change no result
# What a training runs of this project's code, loaded or not: one key whichever command asks.
_PACKAGES = ("training", "scoring", "features", "datasets", "captioners", "language")
_CODE = ("*.py", *(f"{package}/*.{kind}" for package in _PACKAGES for kind in ("py", "cpp", "hpp")))


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to run, and what its captioner will be stored with."""

    training: Training
    config: CaptionerConfig
    vocabulary: Vocabulary

    def write(self, folder: Path) -> None:
        """Write the captioner."""
        with replacing_folder(folder) as temporary:
            write_captioner(temporary, TrainedCaptioner(self.training.captioner, self.config, self.vocabulary))


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
        self.precision = choose_precision(settings.precision, device, "train.precision", ("float32", "bfloat16"))
        self.arithmetic = f"{self.precision} on {device}, {ranks.count} times {torch.get_num_threads()} threads"
        self.arithmetic += f", {native.identity()}" if device.type == "cpu" else ""
        self.device = ranks.device(device)
        self.dataset, self.reader = read_dataset(workspace.dataset), FeatureReader(workspace.features)
        self.reader.require_ids(self.dataset.ids)
        self.vocabulary = Vocabulary.read(workspace.tokens / "vocabulary.json")
        self.grid = decoder_grid(self.reader.grid, settings.grid)
        self.regions = Regions(self.reader, self.grid, self.device, getattr(torch, self.precision))
        captions = EncodedCaptions.read(workspace.tokens / "captions.npz")
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
        """A training of these settings: it goes on from where an earlier one of the same key was stopped.

        Its `tell` is for the caller to set.

        Raises:
            DataError: the monitor is undefined for these images.
        """
        if settings.monitor == "cider" and len(self.validation.rows) == 1:
            raise DataError(
                "train.monitor is cider, which is undefined for one validation image: no epoch would be better than "
                "the first. Set train.monitor to bleu4, or give more validation images (data.splits)."
            )
        config = self._config(settings)
        torch.manual_seed(settings.seed)
        captioner = build_captioner(config.decoder, config.shape, config.options).to(self.device)
        captioner.look_through(self.regions.view.pooling)
        training = Training(
            captioner,
            settings,
            self.images["train"],
            self.validation,
            Checkpoint(self.workspace.work("train") / self.key(settings)[:16]),
            self.regions.dtype,
            untold,
            self.ranks,
        )
        return Prepared(training, config, self.vocabulary)

    def key(self, settings: TrainSettings) -> str:
        """What determines the bytes of a training: a run in progress of any other key is not gone on with."""
        root = Path(__file__).parent.parent
        code = sorted(path for pattern in _CODE for path in root.glob(pattern))
        return sha256_of_json(
            {
                "settings": {name: value for name, value in asdict(settings).items() if name not in NO_BYTES},
                "config": asdict(self._config(settings)),
                "arithmetic": self.arithmetic,
                "captions": sha256(self.workspace.tokens / "captions.npz"),
                "dataset": sha256(self.workspace.dataset / "dataset.jsonl"),
                "features": sha256(self.workspace.features / "manifest.json"),
                "code": {str(path.relative_to(root)): sha256(path) for path in code},
            }
        )

    def _config(self, settings: TrainSettings) -> CaptionerConfig:
        shape = DecoderShape(
            vocabulary_size=len(self.vocabulary.words),
            channels=self.reader.channels,
            embedding_size=settings.embedding_size,
            attention_size=settings.attention_size,
            hidden_size=settings.hidden_size,
            dropout=settings.dropout,
        )
        return CaptionerConfig(
            decoder=settings.decoder,
            options=settings.decoder_options,
            shape=shape,
            grid=self.grid,
            vocabulary=self.vocabulary.fingerprint,
            features=self.reader.fingerprint,
            encoding=self.reader.fields,
            versions={"freezeframe": VERSION, "torch": torch.__version__},
            quantisation=quantisation_json(self.reader.quantisation),
        )
