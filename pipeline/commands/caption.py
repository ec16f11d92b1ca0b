"""`freezeframe caption`: new images through the models that evaluate searches with, and the transform of their cache.

Owns the way from image files to captions outside the pipeline. Uses the encoder that the features were made with, so
that an image captioned alone gets the caption it gets in the test split.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.captioners.options import EvaluateSettings
from pipeline.captioners.search import find_captions
from pipeline.captioners.trained import CaptionerConfig
from pipeline.commands.settings import read_settings
from pipeline.datasets.dataset import read_dataset
from pipeline.errors import CacheError, DataError, MissingError
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import to_stored
from pipeline.features.store import Layout, quantisation_of
from pipeline.files import Workspace, require, sha256
from pipeline.hardware import find_device
from pipeline.report.figure import check_figure, save_figure
from pipeline.report.lettering import FONTS
from pipeline.training.consensus import Consensus
from pipeline.training.models import Models, read_models
from pipeline.training.view import View
from pipeline.vision.encoder import IMPORTED, Encoder, encoder_like
from pipeline.vision.images import load_image

_TOGETHER = 16  # images encoded at once


def caption_images(
    workspace: Workspace, paths: Sequence[Path], figure: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Caption image files.

    Args:
        workspace: its models, and its settings (which of them, where the weights are, how to search).
        paths: the images.
        figure: draw the attention of each word here (.png, .pdf, .svg); with several images their names are added, and
            numbers where two have one name.

    Returns:
        `{"image", "caption", "log_probability"}` for each, and warnings where this machine encodes otherwise than
        the cache was.

    Raises:
        MissingError: an image, or a model, is not there, or the cache that `evaluate.consensus` asks.
        CheckpointError: a model is damaged, or several do not belong together.
        DataError: a figure of that ending cannot be written, or there is a file of its name.
        ImageError: an image cannot be decoded.
        CacheError: the captioner knows features that no encoder here can make, or the cache that `evaluate.consensus`
            asks is not that of the models.
    """
    for path in paths:  # a bad one among many is told before the others have got figures
        load_image(require(path))
    figures = _figures(figure, paths)
    for place in filter(None, figures):
        _require_free(check_figure(place))
    settings = read_settings(workspace.params)
    search: EvaluateSettings = settings["evaluate"]
    device = find_device(search.device, "evaluate.device")
    models = read_models(workspace, search.models, device)
    grid = _grid(models, workspace.models / search.models[0])
    encoder, warnings = encoder_like(models.config.encoding, settings["encode"])
    layout = _layout(models.config, encoder)
    view = View(layout.grid, layout.grid, layout.quantisation, device, torch.float32)
    captioner = models.captioner(layout.grid)
    consensus = _consensus(workspace, models, search) if search.consensus.neighbours else None
    captions = []
    for path, own, target in zip(paths, _encoded(encoder, paths), figures, strict=True):
        regions = view.see(to_stored(own, layout, str(path))[None])  # what the cache would hold of it
        key = sha256(path)
        found = find_captions(captioner, regions, search, [key])
        (hypothesis,) = consensus.choose(captioner, regions, found, [key]) if consensus else found
        words = models.vocabulary.decode(hypothesis.words)
        if not words:
            warnings.append(f"{path} has no caption: the decoder ended at once. Perhaps it was trained too little.")
        captions.append(
            {
                "image": str(path),
                "caption": " ".join(words),
                "log_probability": round(hypothesis.log_probability, 6),
            }
        )
        if target is not None:
            boxes = save_figure(load_image(path), words, hypothesis.attention, grid, target)
            if boxes:
                warnings.append(
                    f"{target}: boxes stand for {' '.join(boxes)}. Name the figure .svg, whose titles are text, or "
                    f"install a font that has all letters of the word; known are {', '.join(FONTS)}."
                )
    return captions, warnings


def _encoded(encoder: Encoder, paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """Each image's features, (R, C); never those of all images at once."""
    for start in range(0, len(paths), _TOGETHER):
        yield from encoder.encode_images(paths[start : start + _TOGETHER])


def _consensus(workspace: Workspace, models: Models, search: EvaluateSettings) -> Consensus:
    """The training images that choose, from the data set and the cache that the models were trained on."""
    try:
        reader = FeatureReader(workspace.features, models.config.features, models.config.encoding)
        return Consensus(read_dataset(workspace.dataset), reader, models.vocabulary, search)
    except (MissingError, CacheError) as error:
        raise type(error)(
            f"{error} The features of training images are needed because evaluate.consensus.neighbours is "
            f"{search.consensus.neighbours}; 0 captions without them."
        ) from error


def _require_free(target: Path) -> None:
    """Refuse to replace a file: with the figure's name forgotten, the first photograph would be taken for it."""
    if target.exists():
        raise DataError(
            f"{target} is there already, and figures replace nothing. Name another file, or remove that one."
        )


def _figures(figure: Path | None, paths: Sequence[Path]) -> list[Path | None]:
    """Where the figure of each image goes, no two to one place."""
    if figure is None or len(paths) == 1:
        return [figure for _ in paths]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    return [figure.with_stem(f"{figure.stem}-{name}") for name in names]


def _grid(models: Models, folder: Path) -> tuple[int, int]:
    """The grid that the models' attention is over, if it is one that an encoder of ours can serve."""
    kind, grid = "boxes" if models.grid is None else "regions", models.grid
    if grid is None or models.config.encoding.get("backbone") == IMPORTED:
        raise CacheError(
            f"{folder} was trained on {kind} that another program made and that were imported: no encoder here can "
            "make such features for a new image. Caption images of the data set with the stage evaluate, or train on "
            "features of a backbone (encode.backbone)."
        )
    return grid


def _layout(config: CaptionerConfig, encoder: Encoder) -> Layout:
    """How the cache that the captioner learned from would hold an image."""
    rows, columns = encoder.engine.grid
    dtype, quantisation = config.encoding["dtype"], quantisation_of(config.quantisation)
    return Layout((rows, columns), rows * columns, encoder.engine.channels, dtype, "none", 1, quantisation)
