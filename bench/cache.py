"""What a cache costs: size, writing and reading of every dtype and codec, on the features of given photographs.

python -m bench.cache [--json] [--images DIR] [--backbone NAME] [--weights default|random|PATH] [--image-size 448]
    [--count 256]

Size and speed depend on the features, so give photographs and trained weights. Writing is rounding, compression and
checksum in one thread; reading is random batches of 32 images from the page cache, decompressed and checked.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bench.bound import layout_of, opened
from bench.machine import machine, seconds
from bench.subject import options, photographs, settings_of
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import encode_row
from pipeline.features.store import Codec, Dtype, Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, write_shard
from pipeline.vision.encoder import EncodeSettings

DATA_SETS = {"Flickr8k": 8_091, "Flickr30k": 31_783, "COCO": 123_287}  # images
BATCH, READS = 32, 16  # images a read, reads a timing


@dataclass(frozen=True)
class Cost:
    """What one dtype and codec costs.

    Attributes:
        kb: an image in the cache.
        share: of raw float16.
        written: images/s that one core rounds and compresses.
        read: images/s.
        decoded: GB/s of features as stored, after decompression.
    """

    kb: float
    share: float
    written: float
    read: float
    decoded: float


def features_of(settings: EncodeSettings, paths: tuple[Path, ...]) -> list[NDArray[np.float32]]:
    """The features of every photograph, (R, C) each."""
    encoder, size = opened(settings), settings.batch_size
    batches = (paths[start : start + size] for start in range(0, len(paths), size))
    return [image for batch in batches for image in encoder.encode_images(batch)]


def cost(features: list[NDArray[np.float32]], layout: Layout, folder: Path) -> Cost:
    """Write the features as the stage would, and read them as training does."""
    rows = [encode_row(image, layout, "") for image in features]
    few = features[:BATCH]
    writing = seconds(lambda: [encode_row(image, layout, "") for image in few], 3) / len(few)
    reading = _reading(_written(rows, layout, folder), len(rows))
    stored = sum(map(len, rows)) / len(rows)
    raw = 2 * layout.cells * layout.channels
    return Cost(stored / 1000, stored / raw, 1 / writing, 1 / reading, layout.image_bytes / reading / 1e9)


def _written(rows: list[bytes], layout: Layout, folder: Path) -> FeatureReader:
    fields, names = {"bench": folder.name}, [f"{number:064x}" for number in range(len(rows))]
    shards = [(shard, folder / f"{shard.number}.shard") for shard in plan(fingerprint_of(fields), names, layout)]
    for shard, path in shards:
        write_shard(path, rows[shard.start : shard.stop], layout)
    assemble(folder / "features.zarr", shards, layout, fields, names, names)
    return FeatureReader(folder / "features.zarr")


def _reading(reader: FeatureReader, images: int) -> float:
    """Seconds an image of random batches."""
    chance, size = np.random.default_rng(0), min(BATCH, images)
    batches = [chance.choice(images, size, replace=False).tolist() for _ in range(READS)]
    return seconds(lambda: [reader.read(batch) for batch in batches], 3) / (READS * size)


def costs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Cost]]:
    """Every dtype with every codec."""
    settings = settings_of(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features = features_of(settings, photographs(arguments, folder))
        for dtype in get_args(Dtype):
            for codec in get_args(Codec):
                layout = layout_of(replace(settings, dtype=dtype, codec=codec), opened(settings).engine, features)
                place = folder / f"{dtype} {codec}"
                place.mkdir()
                yield dtype, codec, cost(features, layout, place)


def main() -> None:
    arguments = options(str(__doc__), count=256).parse_args()
    print(machine())
    print(f"{arguments.backbone}, {arguments.weights}, {arguments.image_size} px, {arguments.count} images at most")
    sizes = " | ".join(f"{name}, GB" for name in DATA_SETS)
    print(
        f"| dtype | codec | kB an image | of raw float16 | {sizes} | written, images/s a core | read, images/s | GB/s |"
    )
    print("| --- " * (7 + len(DATA_SETS)) + "|")
    found = {}
    for dtype, codec, one in costs(arguments):
        totals = " | ".join(f"{one.kb * images / 1e6:.1f}" for images in DATA_SETS.values())
        print(
            f"| {dtype} | {codec} | {one.kb:.1f} | {one.share:.3f} | {totals} | {one.written:.0f} | {one.read:.0f} | "
            f"{one.decoded:.2f} |"
        )
        found[f"{dtype} {codec}"] = {name: round(figure, 4) for name, figure in asdict(one).items()}
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
