"""Training a soft decoder: ours from memory and streaming, beside the tutorials' way and this machine's bound.

python -m bench.train [--json] [--workspace DIR] [--cells 14] [--channels 2048]

Captions a second, whole epochs of ours. The plain way has a feature row a caption, projects regions again at each
word and computes in float32; the tutorials' way has the frozen encoder in that loop. The share of the peak is what the
decoder's matrix products must do, divided by what a product of two 2048 x 2048 matrices does here in the same time;
`share_of_peak` is float32's, for which alone machines without bfloat16 train.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.machine import peak, show
from bench.read import features, ours
from bench.tutorial import TutorialDecoder, step
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import DecoderShape
from pipeline.features.grid import Grid
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.hardware import choose_precision, use_large_pages
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import END, START, Vocabulary
from pipeline.settings import load_section
from pipeline.training.batches import Batch, CaptionedImages, Regions
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import Training, untold
from pipeline.training.settings import TrainSettings

PARAMS = Path(__file__).parents[1] / "params.yaml"
SIZE, WORDS, PER_IMAGE, GRID = 512, 2600, 5, (14, 14)
MEAN, SPREAD, LONGEST = 10.8, 3.8, 36  # words of Flickr8k's captions
BATCH = 32  # images a batch of ours, captions a batch of the plain way
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """What is trained on.

    Attributes:
        cache: its folder.
        grid: of its cells.
        captions: of its images.
        rows: the images.
        words: V.
    """

    cache: Path
    grid: Grid
    captions: EncodedCaptions
    rows: tuple[int, ...]
    words: int


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--workspace", type=Path, metavar="DIR", help="train on its cache and captions")
    parser.add_argument("--images", type=int, default=256, help="images at most (%(default)s)")
    parser.add_argument(
        "--cells", type=int, default=14, help="a side of drawn features' grid; seen as 14 (%(default)s)"
    )
    parser.add_argument("--channels", type=int, default=2048, help="of drawn features (%(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="of state, attention, embedding (%(default)s)")
    parser.add_argument("--plain-batches", type=int, default=3, help="of 32 captions, timed (%(default)s)")
    parser.add_argument("--encoder", default="resnet50", help="torchvision's, in the tutorials' loop (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way; the best counts (%(default)s)")
    return parser.parse_args()


def subject(arguments: argparse.Namespace, folder: Path) -> Subject:
    """The user's, or a drawn one with captions as long as Flickr8k's."""
    if arguments.workspace is not None:
        workspace = Workspace(arguments.workspace)
        captions = EncodedCaptions.read(workspace.tokens / "captions.npz")
        words = len(Vocabulary.read(workspace.tokens / "vocabulary.json").words)
        reader = FeatureReader(workspace.features)
        rows = tuple(sorted(set(captions.row.tolist()))[: arguments.images])
        return Subject(workspace.features, reader.grid, captions, rows, words)
    arguments.cache, arguments.regions = None, arguments.cells**2
    values = features(arguments)[: arguments.images]
    cache = ours(folder, values, "zstd").path
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.normal(MEAN, SPREAD, len(values) * PER_IMAGE).round(), 2, LONGEST).astype(int)
    said = [[START, *generator.integers(4, WORDS, length).tolist(), END] for length in lengths]
    captions = EncodedCaptions.of([row // PER_IMAGE for row in range(len(said))], said)
    return Subject(cache, (arguments.cells, arguments.cells), captions, tuple(range(len(values))), WORDS)


class Cells(FeatureReader):
    """A cache whose drawn features have a grid."""

    drawn: Grid = None

    @property
    def grid(self) -> Grid:
        return self.drawn


def training(on: Subject, arguments: argparse.Namespace, precision: torch.dtype, stay: bool, folder: Path) -> Training:
    """Ours, as `dvc repro` trains, but for validation."""
    reader = Cells(on.cache)
    reader.drawn = on.grid
    if stay:
        reader.keep(on.rows)
    regions = Regions(reader, GRID, CPU, precision)
    settings = replace(
        load_section(PARAMS, "train", TrainSettings), batch_images=BATCH, dropout=0.5, label_smoothing=0.1
    )
    size = arguments.size
    shape = DecoderShape(on.words, reader.channels, size, size, size, settings.dropout)
    torch.manual_seed(0)
    captioner = build_captioner("soft", shape, settings.decoder_options).look_through(regions.view.pooling)
    images = CaptionedImages(on.captions, on.rows, regions)
    return Training(captioner, settings, images, cast(Any, None), Checkpoint(folder), precision, untold)


def epoch(run: Training) -> float:
    """Seconds a caption of a whole epoch."""
    run.progress.batches = captions = 0
    started = time.perf_counter()
    for batch in run.batches_of(0, 0):
        run.take(batch)
        captions += len(batch.lengths.nonzero())
    return (time.perf_counter() - started) / captions


def a_product(precision: torch.dtype) -> float:
    """Seconds an operation of the machine's peak."""
    return 1 / peak(precision)


def rows_of(batches: Iterator[Batch], pooling: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of captions, each with a feature row of its own, the longest first."""
    for batch in batches:
        image, column = (batch.lengths > 0).nonzero(as_tuple=True)
        regions = batch.regions if pooling is None else pooling @ batch.regions
        for part in torch.randperm(len(image), generator=torch.Generator().manual_seed(0)).split(BATCH):
            lengths = batch.lengths[image[part], column[part]]
            part = part[lengths.argsort(descending=True)]
            captions = batch.captions[image[part], column[part]]
            yield regions[image[part]], captions, batch.lengths[image[part], column[part]]


def plain_way(run: Training, arguments: argparse.Namespace, words: int) -> Callable[[], float]:
    """A turn of the plain way: seconds a caption."""
    torch.manual_seed(0)
    decoder = TutorialDecoder(run.images.regions.reader.channels, arguments.size, words)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=4e-4)
    batches = rows_of(run.batches_of(0, 0), run.images.regions.view.pooling)
    step(decoder, optimiser, *next(batches))
    taken = list(itertools.islice(batches, arguments.plain_batches))

    def turn() -> float:
        started = time.perf_counter()
        for batch in taken:
            step(decoder, optimiser, *batch)
        return (time.perf_counter() - started) / sum(len(lengths) for _, _, lengths in taken)

    return turn


def encoding(arguments: argparse.Namespace, grid: Grid) -> Callable[[], float]:
    """A turn of the encoder, as the tutorials call it: eager, float32, on the captions' batch. Seconds an image."""
    from torchvision import models

    side = 32 * (grid or GRID)[0]
    encoder = models.get_model(arguments.encoder, weights=None).eval()
    images = torch.rand(BATCH, 3, side, side)

    def turn() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            encoder(images)
        return (time.perf_counter() - started) / BATCH

    with torch.no_grad():
        encoder(images[:2])
    return turn


def operations(on: Subject, channels: int, size: int) -> float:
    """Floating point operations a caption of an epoch's matrix products, none of them done twice.

    A product counts 2 a multiplication; its gradients count it again for each side that has one. Features have none.
    """
    cells = (on.grid or GRID)[0] * (on.grid or GRID)[1]
    own = np.isin(on.captions.row, on.rows)
    words = int((on.captions.lengths[own] - 1).sum())
    a_word = 4 * size * (size + channels + size) + size * (size + channels) + size * (size + channels) + size * on.words
    keys = cells * channels * size
    return 2.0 * (words * (3 * a_word + 2 * cells * channels) + len(on.rows) * 2 * keys) / int(own.sum())


def ways(
    on: Subject, arguments: argparse.Namespace, precisions: Iterable[str], folder: Path
) -> dict[str, Callable[[], float]]:
    """A turn of each way, warmed up: seconds a caption; of the peak, seconds an operation."""
    turns: dict[str, Callable[[], float]] = {}
    for precision in precisions:
        dtype = getattr(torch, precision)
        for kind in ("memory", "streaming"):
            run = training(on, arguments, dtype, kind == "memory", folder)
            epoch(run)  # reads, compiles, warms up
            turns[f"{kind}, {precision}"] = partial(epoch, run)
        turns[f"peak, {precision}"] = partial(a_product, dtype)
    alone = training(on, arguments, torch.float32, True, folder)
    turns["plain"] = plain_way(alone, arguments, on.words)
    turns["encoder"] = encoding(arguments, on.grid)
    return turns


def measure(
    on: Subject, arguments: argparse.Namespace, folder: Path
) -> tuple[list[tuple[str, float, str]], dict[str, float]]:
    """The best of several turns of each way. They alternate: a shared machine's speed changes from minute to minute."""
    auto = choose_precision("auto", CPU, "", ("float32", "bfloat16"))
    precisions = tuple(dict.fromkeys(("float32", auto)))
    turns = ways(on, arguments, precisions, folder)
    best = dict.fromkeys(turns, np.inf)
    for _ in range(arguments.rounds):
        for way, turn in turns.items():
            best[way] = min(best[way], turn())
    needed = operations(on, FeatureReader(on.cache).channels, arguments.size)
    rows, ratios = [], {}
    for precision in precisions:
        rows += [
            (f"ours, {kind}, {precision}", 1 / best[f"{kind}, {precision}"], "captions/s")
            for kind in ("memory", "streaming")
        ]
        rows += [(f"peak of a product, {precision}", 1e-9 / best[f"peak, {precision}"], "GFLOP/s")]
        share = needed * best[f"peak, {precision}"] / best[f"memory, {precision}"]
        ratios["share_of_peak" if precision == "float32" else f"share_of_peak_{precision}"] = share
    tutorial = best["plain"] + best["encoder"]
    rows += [
        ("plain, float32", 1 / best["plain"], "captions/s"),
        ("with the encoder in the loop", 1 / tutorial, "captions/s"),
    ]
    fastest = best[f"streaming, {auto}"]
    ratios |= {
        "ratio_plain": best["plain"] / fastest,
        "ratio_tutorial": tutorial / fastest,
        "ratio_memory": best[f"memory, {auto}"] / fastest,
    }
    return rows, ratios


def main() -> None:
    arguments = options()
    use_large_pages()
    with tempfile.TemporaryDirectory() as name:
        rows, ratios = measure(subject(arguments, Path(name)), arguments, Path(name) / "training")
    show(rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
