"""`freezeframe caption`: new images through the trained captioner and the transform of its cache.

Owns the way from image files to captions outside the pipeline. Uses the encoder that the features were made with, so
that an image captioned alone gets the caption it gets in the test split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.captioners.search import EvaluateSettings, Hypothesis, beam_search
from pipeline.captioners.trained import TrainedCaptioner, read_captioner
from pipeline.commands.settings import read_settings
from pipeline.features.grid import pooling
from pipeline.files import Workspace, require
from pipeline.hardware import find_device
from pipeline.report.attention import save_figure
from pipeline.vision.encoder import encoder_like
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
    """
    for path in paths:
        require(path)
    settings = read_settings(workspace.params)
    search: EvaluateSettings = settings["evaluate"]
    trained = read_captioner(workspace.captioner, find_device(search.device, "evaluate.device"))
    encoder, warnings = encoder_like(trained.config.encoding, settings["encode"])
    regions = encoder.encode_images(paths)
    captions = []
    for path, own in zip(paths, regions, strict=True):
        hypothesis = _caption(trained, own, encoder.engine.grid, search)
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
            save_figure(load_image(path), words, hypothesis.attention, trained.config.grid, target)
    return captions, warnings


def _caption(
    trained: TrainedCaptioner, regions: "np.ndarray[Any, Any]", native: tuple[int, int], search: EvaluateSettings
) -> Hypothesis:
    matrix = pooling(native, trained.config.grid)
    seen = regions.astype(np.float32) if matrix is None else matrix @ regions.astype(np.float32)
    device = next(trained.captioner.parameters()).device
    return beam_search(
        trained.captioner,
        torch.from_numpy(seen)[None].to(device),
        beam=search.beam,
        length_penalty=search.length_penalty,
        max_length=search.max_length,
    )[0]
