"""The encoder: backbone, engine and preprocessing as one, and what of them determines the bytes.

Owns the section `encode`, the fields of the fingerprint, and building the same encoder again from those fields.
Does not know data sets or caches. Loads torch only when an encoder is built, so that settings are checked at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DependencyError, DeviceError, WeightsError
from pipeline.settings import Range

if TYPE_CHECKING:
    from pipeline.vision.engines import Engine
    from pipeline.vision.images import Preprocessing

ENCODING_VERSION = 2  # raise by hand when a change of ours changes the bytes of features
IMPORTED = "imported"  # in the place of a backbone's name: the features come from another program's file


@dataclass(frozen=True)
class EncodeSettings:
    """The section `encode`."""

    backbone: str
    weights: str
    layer: str | None
    image_size: Annotated[int, Range(32, 4096)]
    dtype: Literal["float16", "float32", "uint8"]
    codec: Literal["zstd", "blosc", "none"]
    engine: Literal["auto", "torch", "openvino"]
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"]
    batch_size: Annotated[int, Range(1, 4096)]
    shard_images: Annotated[int, Range(1, 65_536)]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    device: str
    workers: Annotated[int, Range(0, 1024)]
    scheduler: str
    resource: str | None
    shared: str | None


@dataclass(frozen=True)
class Encoder:
    """A frozen backbone, ready to run.

    Attributes:
        engine: runs it.
        preprocessing: from image to its input.
        fields: all that determines an image's features, apart from the image.
    """

    engine: Engine
    preprocessing: Preprocessing
    fields: dict[str, Any]

    def load(self, content: bytes) -> NDArray[np.uint8]:
        """Decode and resize one image: (S, S, 3) uint8.

        Args:
            content: of the file.

        Raises:
            ImageError: it cannot be decoded; the message is the bare reason.
        """
        from pipeline.vision.images import decode

        return self.preprocessing.apply(decode(content).image)

    def start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        """Begin to encode loaded images: (B, R, C) float32. From any thread; see `Engine.start`."""
        return self.engine.start(images)

    def encode_images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        """Encode image files, for whoever captions new ones: (B, R, C) float32, not rounded as the cache's are.

        Raises:
            ImageError: one cannot be decoded; the message names it.
        """
        from pipeline.vision.images import load_image

        return self.start([self.preprocessing.apply(load_image(path)) for path in paths]).result()


def open_encoder(settings: EncodeSettings) -> Encoder:
    """Build the encoder that the settings describe.

    Raises:
        WeightsError, MissingError, DependencyError, DeviceError: see `build_backbone` and `choose_engine`.
    """
    from pipeline.vision.backbones import build_backbone
    from pipeline.vision.engines import choose_engine

    backbone = build_backbone(settings.backbone, settings.weights, settings.image_size, settings.seed, settings.layer)
    engine = choose_engine(
        backbone.module,
        backbone.preprocessing,
        settings.engine,
        settings.precision,
        settings.device,
        settings.batch_size,
    )
    preprocessing = backbone.preprocessing
    fields = {
        "encoding_version": ENCODING_VERSION,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_sha256": backbone.weights_sha256,
        "seed": settings.seed if backbone.weights == "random" else None,
        "image_size": preprocessing.image_size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "dtype": settings.dtype,
        "engine": engine.name,
        "precision": engine.precision,
        "device": engine.device,
        "batch_size": engine.batch_size,
        "libraries": _versions("pillow", "torch", backbone.library, engine.name),
    }
    if settings.layer is not None:  # caches of the last map keep the fingerprint they had before there were layers
        fields["layer"] = settings.layer
    return Encoder(engine, preprocessing, fields)


def _versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in sorted(set(names))}


def encoder_like(fields: Mapping[str, Any], settings: EncodeSettings) -> tuple[Encoder, list[str]]:
    """Build the encoder that a cache was made with.

    What determines the features comes from the cache's fields; from the settings comes only where things are: the
    path of the weights, the device.

    Args:
        fields: of the cache's fingerprint.
        settings: of this machine.

    Returns:
        The encoder, and a sentence for each difference that may change the last digits.

    Raises:
        WeightsError: the weights at the path are not those the cache was made with, or the features were imported.
        DependencyError, DeviceError: this machine cannot run it at all.
    """
    if fields["backbone"] == IMPORTED:
        raise WeightsError(
            f"The features were imported from {fields['weights']}, so the encoder that made them is not known here and "
            "new images cannot be encoded like them. To caption images, set encode.backbone to a backbone of "
            'torchvision or timm and run "dvc repro"; the images of the data set are captioned by "dvc repro evaluate".'
        )
    from pipeline.vision.weights import require_weights

    wanted = _settings_of(fields, settings)
    encoder = _open_near(wanted)
    found = encoder.fields
    if fields["weights"] != "random":
        require_weights(fields, wanted.weights, found["weights_sha256"])
    return encoder, [
        f"The features were made with {key} {fields[key]!r}; new images are encoded with {found.get(key)!r}, so "
        "captions may differ."
        for key in fields
        if found.get(key) != fields[key]
    ]


def _open_near(settings: EncodeSettings) -> Encoder:
    """The encoder itself, or, where this machine lacks the engine or the precision, the nearest that it has."""
    anywhere = replace(settings, engine="auto", device="auto")
    for nearest in (settings, anywhere):
        try:
            return open_encoder(nearest)
        except (DependencyError, DeviceError):
            continue
    return open_encoder(replace(anywhere, precision="auto"))


def _settings_of(fields: Mapping[str, Any], settings: EncodeSettings) -> EncodeSettings:
    from pipeline.vision.weights import weights_like

    return replace(
        settings,
        backbone=fields["backbone"],
        weights=weights_like(fields, settings.weights),
        layer=fields.get("layer"),
        image_size=fields["image_size"],
        dtype=fields["dtype"],
        engine=fields["engine"],
        precision=fields["precision"],
        device=settings.device if settings.device.startswith(fields["device"]) else fields["device"],
        batch_size=fields["batch_size"],
        seed=fields["seed"] or 0,
    )
