"""A data set of noise and an encoder of plain arithmetic, both made in milliseconds and without torch."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets.dataset import Dataset, Example, read_dataset, read_images, write_dataset
from pipeline.encoding.run import Receipt, encode_dataset
from pipeline.errors import ImageError
from pipeline.files import Workspace, sha256
from pipeline.vision.encoder import Encoder, EncodeSettings
from pipeline.vision.images import Preprocessing

SETTINGS = EncodeSettings(
    backbone="resnet18",
    weights="random",
    layer=None,
    image_size=64,
    dtype="float16",
    codec="zstd",
    engine="torch",
    precision="float32",
    batch_size=2,
    shard_images=3,
    seed=5,
    device="cpu",
    workers=2,
    scheduler="local",
    resource=None,
    shared=None,
)
IMAGES = 11
ROWS, COLUMNS, CHANNELS = 2, 3, 5


class QuickEngine:
    """Regions are means of blocks of pixels, mixed by a fixed matrix: every image has features of its own."""

    name, precision, device, grid, channels, batch_size = "torch", "float32", "cpu", (ROWS, COLUMNS), CHANNELS, 1

    def __init__(self) -> None:
        self.mixing = np.random.default_rng(4).standard_normal((3, CHANNELS)).astype(np.float32)
        self.batches: list[int] = []

    def start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        self.batches.append(len(images))
        future: Future[NDArray[np.float32]] = Future()
        future.set_result(np.stack([self.features(image) for image in images]))
        return future

    def features(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        blocks = image.astype(np.float32).reshape(ROWS, 6 // ROWS, COLUMNS, 6 // COLUMNS, 3).mean(axis=(1, 3))
        mixed: NDArray[np.float32] = blocks.reshape(ROWS * COLUMNS, 3) @ self.mixing
        return mixed


def quick_encoder(**fields: object) -> Encoder:
    """An encoder of 6 x 6 pixels; `fields` make it another one."""
    preprocessing = Preprocessing(6, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    return Encoder(QuickEngine(), preprocessing, {"backbone": "quick", "dtype": "float16", **fields})  # type: ignore[arg-type]


def draw(workspace: Workspace, numbers: Sequence[int] = range(IMAGES)) -> Dataset:
    """Images of noise by number, each of another shape, and their list in that order; again for another list."""
    folder = workspace.dataset / "images"
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in numbers:
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        examples.append(Example(f"id {number}", path.name, "train", ("a word",), sha256(path)))
    write_dataset(workspace.dataset, examples, {"format": "shapes", "drawn": True, "skipped": []})
    return read_dataset(workspace.dataset)


def encode(
    workspace: Workspace,
    encoder: Encoder,
    settings: EncodeSettings = SETTINGS,
    tell: Callable[[str], None] = lambda _: None,
) -> Receipt:
    """Encode the drawn data set."""
    images = read_images(workspace.dataset)
    return encode_dataset(workspace, images, workspace.dataset / "images", encoder, settings, tell)


def content(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def shards(workspace: Workspace) -> dict[Path, int]:
    """Finished shards in the work folder, with the time they were written."""
    return {path: path.stat().st_mtime_ns for path in workspace.work("encode").rglob("*.shard")}


def fail_at(image: Path, workspace: Workspace, patch: pytest.MonkeyPatch) -> None:
    """Let an image be undecodable, as soon as a shard is finished: a run that stops in the middle."""
    load, bad = Encoder.load, image.read_bytes()

    def failing(self: Encoder, content: bytes) -> NDArray[np.uint8]:
        while content == bad:
            if shards(workspace):
                raise ImageError("it is cut short")
            time.sleep(0.01)
        return load(self, content)

    patch.setattr(Encoder, "load", failing)
