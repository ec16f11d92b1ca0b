"""Stage one, from JPEG files to the finished cache: ours, beside the plain way and this machine's bound, in one run.

python -m bench.encode [--json] [--images DIR [--resave 500x375]] [--backbone NAME] [--weights default|random|PATH]
    [--image-size 448] [--count 1000] [--rounds 3]

Plain: torch in float32, eager, one process; Pillow, one batch after another, one float32 .npy an image, as tutorials
do it. Bound: forward pass, decoding and compression, each alone on all cores, added up (on a GPU: the longer of the
forward pass and the rest, which run on different hardware). Building the backbone and compiling it is on nobody's
account; our time goes from opened encoder to readable store. Ours has a process of its own, so that its memory is;
the sides take turns, and the best turn of each counts.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.bound import measure_parts, network, opened
from bench.machine import show
from bench.subject import options, photographs, settings_of
from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.run import encode_dataset
from pipeline.files import Workspace, sha256
from pipeline.hardware import find_device
from pipeline.vision.encoder import EncodeSettings
from pipeline.vision.images import Preprocessing

PLAIN_BATCH = 16
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Ours:
    """One turn of ours.

    Attributes:
        seconds: an image.
        stored: bytes an image in the cache.
        raw: bytes an image as plain float16.
        peak: bytes of memory that the process ever held, start-up included.
        busy: share of all cores' time that it was given; what is missing, others took or it waited.
        described: the engine, and what it makes.
    """

    seconds: float
    stored: float
    raw: int
    peak: int
    busy: float
    described: str


def ours(settings: EncodeSettings, paths: tuple[Path, ...]) -> Ours:
    """One turn: the stage's own code, in a fresh workspace."""
    encoder = opened(settings)
    images = [ImageFile(path.name, path.name, sha256(path)) for path in paths]
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name))
        started, busy = time.perf_counter(), time.process_time()
        receipt = encode_dataset(workspace, images, paths[0].parent, encoder, settings, lambda _: None)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    (rows, columns), channels = encoder.engine.grid, encoder.engine.channels
    described = f"{rows} x {columns} x {channels}, {encoder.engine.name} in {encoder.engine.precision}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    stored, raw = receipt.stored_bytes / len(paths), 2 * rows * columns * channels
    return Ours(seconds / len(paths), stored, raw, peak, busy / (seconds * len(os.sched_getaffinity(0))), described)


def plain(settings: EncodeSettings, paths: tuple[Path, ...]) -> float:
    """One turn of the plain way: seconds an image."""
    backbone, device = network(settings), find_device(settings.device, "encode.device")
    module = backbone.module.to(device)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        started = time.perf_counter()
        for start in range(0, len(paths), PLAIN_BATCH):
            some = paths[start : start + PLAIN_BATCH]
            batch = torch.stack([torch.from_numpy(_transform(path, backbone.preprocessing)) for path in some])
            regions = module(batch.to(device)).flatten(2).transpose(1, 2)  # (B, R, C)
            for path, own in zip(some, regions.cpu().numpy(), strict=True):
                np.save(Path(name) / f"{path.stem}.npy", own)
        return (time.perf_counter() - started) / len(paths)


def _transform(path: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What torchvision's transforms of a Pillow image do: (3, S, S) float32, normalised."""
    side = preprocessing.image_size
    with Image.open(path) as image:
        square = image.convert("RGB").resize((side, side), RESAMPLING[preprocessing.interpolation])
    pixels = np.asarray(square, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.asarray(each, np.float32).reshape(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return (pixels - mean) / std


def bound_of(parts: dict[str, float], on_gpu: bool) -> float:
    """Seconds an image that no arrangement of the same parts can beat."""
    forward, rest = min(parts["engine"], parts["runtime"]), parts["decoding"] + parts["compression"]
    return max(forward, rest) if on_gpu else forward + rest


def take_turns(
    settings: EncodeSettings, paths: tuple[Path, ...], arguments: argparse.Namespace
) -> tuple[Ours, float, dict[str, float]]:
    """The best of several turns: ours, the plain way's seconds an image, those of the bound's parts."""
    os.environ["TQDM_DISABLE"] = "1"  # inherited
    spawn = multiprocessing.get_context("spawn")
    turns, plains, parts = [], [], []
    with ExitStack() as stack:
        mine, others = (stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(2))
        for _ in range(arguments.rounds):
            turns.append(mine.submit(ours, settings, paths).result())
            parts.append(others.submit(measure_parts, settings, paths, arguments.seconds).result())
            plains.append(others.submit(plain, settings, paths[: arguments.plain_count]).result())
    best = min(turns, key=lambda turn: turn.seconds)
    return best, min(plains), {name: min(part[name] for part in parts) for name in parts[0]}


def main() -> None:
    parser = options(str(__doc__), count=256)
    parser.add_argument("--plain-count", type=int, default=32, help="images of the plain way's turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="each part of the bound is measured (%(default)s)")
    parser.add_argument("--dtype", help="encode.dtype, else as in params.yaml")
    parser.add_argument("--codec", help="encode.codec, else as in params.yaml")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    with tempfile.TemporaryDirectory() as name:
        paths = photographs(arguments, Path(name))
        mine, theirs, parts = take_turns(settings, paths, arguments)
    on_gpu = find_device(settings.device, "encode.device").type == "cuda"
    bound = bound_of(parts, on_gpu)
    print(f"{settings.backbone}, {settings.image_size} px, {len(paths)} images: {mine.described}, {settings.dtype}.")
    seconds = {"ours, end to end": mine.seconds, "the plain way": theirs, "the bound": bound} | {
        "  forward, our engine": parts["engine"],
        "  forward, its library alone": parts["runtime"],
        "  decoding alone": parts["decoding"],
        "  compression alone": parts["compression"],
    }
    rows = [(what, 1 / taken, "images/s") for what, taken in seconds.items()]
    rows += [("the cores' time that ours had", 100 * mine.busy, "%"), ("the cache", mine.stored / 1000, "kB an image")]
    ratios = {
        "ratio_plain": theirs / mine.seconds,
        "ratio_bound": bound / mine.seconds,
        "peak_memory_mb": mine.peak / 1e6,
        "bytes_ratio": mine.stored / mine.raw,
    }
    show(rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
