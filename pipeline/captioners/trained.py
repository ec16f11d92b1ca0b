"""A trained captioner on disk: weights, what they were built from, and the vocabulary they speak.

Owns `models/captioner/` and what it refuses. Does not know how it was trained, nor what a tail is: whoever reads a
captioner that has one says how it is built. Never loads a pickle.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pipeline.captioners.build import build_captioner, check_decoder
from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.errors import CheckpointError
from pipeline.files import read_json, require, write_json
from pipeline.language.vocabulary import Vocabulary
from pipeline.settings import collect

Grid = tuple[int, int] | None  # None: regions without a place in the image
_AGAIN = 'Run "dvc repro train".'
_RESTORE = 'Run "dvc repro train"; a captioner that a sweep has kept comes back with "dvc checkout --force".'


@dataclass(frozen=True)
class TailConfig:
    """The part of the backbone that was trained with the decoder, between the cache and it.

    Attributes:
        first: its first block (`train.tail`).
        grid: rows and columns of what it gives, which the decoder's regions are pooled from.
    """

    first: str
    grid: tuple[int, int]


@dataclass(frozen=True)
class CaptionerConfig:
    """`config.json`.

    Attributes:
        decoder: its name.
        options: its own settings.
        shape: its sizes.
        grid: rows and columns it sees; None for regions without a place.
        vocabulary: the vocabulary's fingerprint.
        features: the cache's fingerprint.
        encoding: the fields of that fingerprint: how an image must be encoded for this captioner.
        versions: of freezeframe and torch.
        quantisation: what the cache's bytes mean, as its attributes have it; None for floats. A new image is rounded
            by it too.
        tail: None if the decoder reads the cache itself. Absent where there were no tails yet.
    """

    decoder: str
    options: dict[str, Any]
    shape: DecoderShape
    grid: tuple[int, int] | None
    vocabulary: str
    features: str
    encoding: dict[str, Any]
    versions: dict[str, str]
    quantisation: dict[str, list[float]] | None
    tail: TailConfig | None = None

    def native(self, cache: Grid) -> Grid:
        """The grid that the decoder's regions are pooled from: that of the cache, unless a tail makes another of it."""
        return cache if self.tail is None else self.tail.grid


Attach = Callable[[Captioner, CaptionerConfig], Captioner]  # puts a decoder behind the tail that its config names


@dataclass(frozen=True)
class TrainedCaptioner:
    """A captioner with all that is needed to use it."""

    captioner: Captioner
    config: CaptionerConfig
    vocabulary: Vocabulary

    def require_vocabulary(self, vocabulary: Vocabulary, folder: Path) -> None:
        """Refuse tokens that are not this captioner's.

        Raises:
            CheckpointError: the vocabularies differ.
        """
        if vocabulary.fingerprint != self.config.vocabulary:
            raise CheckpointError(
                f"{folder} was trained with another vocabulary: it speaks {len(self.vocabulary):,} words (fingerprint "
                f"{self.config.vocabulary[:12]}), the tokens have {len(vocabulary):,} ({vocabulary.fingerprint[:12]}). "
                f"{_AGAIN}"
            )


def write_captioner(folder: Path, trained: TrainedCaptioner) -> None:
    """Write the three files into an existing folder (its caller makes it whole or absent)."""
    weights = {name: value.contiguous().cpu() for name, value in _stored(trained.captioner).items()}
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    write_json(folder / "config.json", asdict(trained.config))
    trained.vocabulary.write(folder / "vocabulary.json")


def read_captioner(folder: Path, device: torch.device, attach: Attach | None = None) -> TrainedCaptioner:
    """Read a trained captioner, in eval mode.

    Args:
        folder: `models/captioner`.
        device: where it is to be.
        attach: called for a captioner that has a tail, before its weights are loaded.

    Raises:
        MissingError: train has not run.
        CheckpointError: the files are damaged or do not belong together, or a tail cannot be attached.
    """
    config, vocabulary = _config(folder), Vocabulary.read(folder / "vocabulary.json")
    captioner = build_captioner(config.decoder, config.shape, config.options)
    if config.tail is not None:
        if attach is None:
            raise CheckpointError(f"{folder} was trained with a tail ({config.tail.first}), which is not read here.")
        captioner = attach(captioner, config)
    _load(captioner, folder / "model.safetensors")
    trained = TrainedCaptioner(captioner.to(device).eval(), config, vocabulary)
    trained.require_vocabulary(vocabulary, folder)
    return trained


def _config(folder: Path) -> CaptionerConfig:
    path, problems = folder / "config.json", list[str]()
    fields = read_json(path, made_by="train")
    try:
        shape, grid = collect(DecoderShape, fields["shape"], "shape", problems), _grid(fields["grid"])
        tail = fields.get("tail")
        read = None if tail is None else TailConfig(**{**tail, "grid": _grid(tail["grid"])})
        config = CaptionerConfig(**{**fields, "shape": shape, "grid": grid, "tail": read})
        if odd := [name for name in ("vocabulary", "features") if not isinstance(fields[name], str)]:
            raise TypeError(f"{' and '.join(odd)}: expected text")
        check_decoder(config.decoder, config.options, problems)
    except (TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is not what train writes ({error}). {_RESTORE}") from error
    if problems:
        raise CheckpointError(f"{path} is not what train writes ({'; '.join(problems)}). {_RESTORE}")
    return config


def _grid(read: list[int] | None) -> Grid:
    return None if read is None else (read[0], read[1])


def _stored(captioner: Captioner) -> dict[str, torch.Tensor]:
    """The weights without second names of the same tensor (tied weights)."""
    seen: set[int] = set()
    weights = {}
    for name, value in captioner.state_dict().items():
        if value.data_ptr() not in seen:
            weights[name] = value
        seen.add(value.data_ptr())
    return weights


def _load(captioner: Captioner, path: Path) -> None:
    try:
        weights = safetensors.torch.load(require(path, made_by="train").read_bytes())
        expected = _stored(captioner)
        if weights.keys() != expected.keys():
            odd = sorted(weights.keys() ^ expected.keys())
            raise CheckpointError(
                f"{path} does not fit its config.json: {', '.join(odd[:10])} on one side only. {_RESTORE}"
            )
        captioner.load_state_dict(weights, strict=False)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}. {_RESTORE}") from error
