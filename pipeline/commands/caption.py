"""`freezeframe caption`: new images through the trained captioner and the transform of its cache.

Owns the way from image files to captions outside the pipeline. Uses the encoder that the features were made with, so
that an image captioned alone gets the caption it gets in the test split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.captioners.options import EvaluateSettings
from pipeline.captioners.search import find_captions
from pipeline.captioners.trained import CaptionerConfig, read_captioner
from pipeline.commands.settings import read_settings
from pipeline.errors import CacheError
from pipeline.features.rows import to_stored
from pipeline.features.store import Layout, quantisation_of
from pipeline.files import Workspace, require, sha256
from pipeline.hardware import find_device
from pipeline.report.attention import save_figure
from pipeline.training.view import View
from pipeline.vision.encoder import Encoder, encoder_like
from pipeline.vision.images import load_image


def caption_images(
    workspace: Workspace, paths: Sequence[Path], figure: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Caption image files.

    Args:
        workspace: its captioner, and its settings (where the weights are, how to search).
        paths: the images.
        figure: draw the attention of each word here; with several images their names are added to it.

    Returns:
        `{"image", "caption", "log_probability"}` for each, and warnings where this machine encodes otherwise than
        the cache was.

    Raises:
        MissingError: an image, or the captioner, is not there.
        ImageError: an image cannot be decoded.
        CacheError: the captioner knows features that no encoder here can make.
    """
    for path in paths:
        require(path)
    settings = read_settings(workspace.params)
    search: EvaluateSettings = settings["evaluate"]
    device = find_device(search.device, "evaluate.device")
    trained = read_captioner(workspace.captioner, device)
    grid = _grid(trained.config, workspace.captioner)
    encoder, warnings = encoder_like(trained.config.encoding, settings["encode"])
    layout = _layout(trained.config, encoder)
    view = View(layout.grid, grid, layout.quantisation, device, torch.float32)
    trained.captioner.look_through(view.pooling)
    captions = []
    for path, own in zip(paths, encoder.encode_images(paths), strict=True):
        regions = view.see(to_stored(own, layout, str(path))[None])  # what the cache would hold of it
        (hypothesis,) = find_captions(trained.captioner, regions, search, [sha256(path)])
        words = trained.vocabulary.decode(hypothesis.words)
        captions.append(
            {
                "image": str(path),
                "caption": " ".join(words),
                "log_probability": round(hypothesis.log_probability, 6),
            }
        )
        if figure is not None:
            target = figure if len(paths) == 1 else figure.with_stem(f"{figure.stem}-{path.stem}")
            save_figure(load_image(path), words, hypothesis.attention, grid, target)
    return captions, warnings


def _grid(config: CaptionerConfig, folder: Path) -> tuple[int, int]:
    """The grid that the captioner sees, if it is one that an encoder of ours can serve."""
    kind = "boxes" if config.grid is None else "regions"
    if config.grid is None or config.encoding.get("backbone") == "imported":
        raise CacheError(
            f"{folder} was trained on {kind} that another program made and that were imported: no encoder here can "
            "make such features for a new image. Caption images of the data set with the stage evaluate, or train on "
            "features of a backbone (encode.backbone)."
        )
    return config.grid


def _layout(config: CaptionerConfig, encoder: Encoder) -> Layout:
    """How the cache that the captioner learned from would hold an image."""
    rows, columns = encoder.engine.grid
    dtype, quantisation = config.encoding["dtype"], quantisation_of(config.quantisation)
    return Layout((rows, columns), rows * columns, encoder.engine.channels, dtype, "none", 1, quantisation)
