"""Random reads of whole rows from a cache: ours, beside other ways to read the same features, in one run.

python -m bench.read [--json] [--cache DIR] [--regions 196] [--channels 2048]

GB/s of decoded features, batches of 32 images, page cache warm. Ours checks every row. Without a cache of photographs
the features are drawn: 93 % zeros, as a trained backbone with ReLU gives them. The ways take turns, and the best of
each one's times counts.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import zarr
from numpy.typing import NDArray

from bench.machine import seconds, show
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import encode_row
from pipeline.features.store import Codec, Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, write_shard

IMAGES, SHARD, BATCH, ROUNDS = 256, 64, 32, 6
TENSORSTORE_CACHE = 32 * 2**20  # bytes: room for the indices of all shards, not for the features


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="a float16 cache: its first images are read")
    parser.add_argument("--regions", type=int, default=196, help="of drawn features (%(default)s)")
    parser.add_argument("--channels", type=int, default=2048, help="of drawn features (%(default)s)")
    return parser.parse_args()


def features(arguments: argparse.Namespace) -> NDArray[np.float16]:
    """(N, R, C), of a cache or drawn."""
    if arguments.cache is not None:
        reader = FeatureReader(arguments.cache)
        return reader.read(range(min(IMAGES, len(reader.ids)))).astype(np.float16)
    generator = np.random.default_rng(0)
    size = (IMAGES, arguments.regions, arguments.channels)
    values = np.empty(size, np.float16)
    for image in values:
        drawn = np.abs(generator.standard_normal(size[1:], dtype=np.float32))
        image[:] = drawn * (generator.random(size[1:], dtype=np.float32) > 0.93)
    return values


def ours(folder: Path, values: NDArray[np.float16], codec: Codec) -> FeatureReader:
    """A cache of ours."""
    fields = {"bench": "read"}
    layout = Layout(None, values.shape[1], values.shape[2], "float16", codec, SHARD, None)
    names = [f"{row:064x}" for row in range(len(values))]
    pairs = []
    for shard in plan(fingerprint_of(fields), names, layout):
        path = folder / f"{shard.key}.shard"
        rows = values[shard.start : shard.stop]
        write_shard(path, [encode_row(row.astype(np.float32), layout, "bench") for row in rows], layout)
        pairs.append((shard, path))
    assemble(folder / f"{codec}.zarr", pairs, layout, fields, names, names)
    return FeatureReader(folder / f"{codec}.zarr")


def others(folder: Path, values: NDArray[np.float16]) -> None:
    np.save(folder / "features.npy", values)
    with h5py.File(folder / "features.h5", "w") as file:
        file.create_dataset("features", data=values, chunks=(1, *values.shape[1:]))


def opened(reader: FeatureReader) -> Any:
    """The same store, by tensorstore."""
    store = {"driver": "file", "path": f"{reader.path / 'regions'}/"}
    context = {"cache_pool": {"total_bytes_limit": TENSORSTORE_CACHE}}
    return tensorstore.open({"driver": "zarr3", "kvstore": store, "context": context}, read=True).result()


def measure(folder: Path, values: NDArray[np.float16]) -> dict[str, float]:
    """Seconds a batch of each way."""
    others(folder, values)
    compressed, plain = ours(folder, values, "zstd"), ours(folder, values, "none")
    held = FeatureReader(compressed.path)
    held.keep(range(len(values)))
    held.read(range(len(values)))
    array = zarr.open_array(compressed.path / "regions", mode="r")
    by_tensorstore = {reader: opened(reader) for reader in (compressed, plain)}
    raw = np.load(folder / "features.npy", mmap_mode="r")
    generator = np.random.default_rng(1)

    def rows() -> list[int]:
        return generator.choice(len(values), min(BATCH, len(values)), replace=False).tolist()  # type: ignore[no-any-return]

    with h5py.File(folder / "features.h5") as file:
        dataset = file["features"]
        ways: dict[str, Callable[[], Any]] = {
            "ours, zstd": lambda: compressed.read(rows()),
            "ours, zstd, in memory": lambda: held.read(rows()),
            "ours, none": lambda: plain.read(rows()),
            "tensorstore, zstd": lambda: by_tensorstore[compressed][rows()].read().result(),
            "tensorstore, none": lambda: by_tensorstore[plain][rows()].read().result(),
            "zarr-python oindex, zstd": lambda: array.oindex[np.array(rows())],
            "zarr-python row by row, zstd": lambda: [array[row] for row in rows()],
            "h5py, raw, sorted rows": lambda: dataset[sorted(rows())],
            "h5py, raw, row by row": lambda: [dataset[row] for row in rows()],
            "numpy memmap, raw": lambda: raw[rows()],
        }
        rounds = [{way: seconds(call, 1) for way, call in ways.items()} for _ in range(ROUNDS)]
    return {way: min(one[way] for one in rounds) for way in ways}


def main() -> None:
    arguments = options()
    with tempfile.TemporaryDirectory() as name:
        values = features(arguments)
        times = measure(Path(name), values)
    size = min(BATCH, len(values)) * values[0].nbytes / 1e9
    print(f"{values.shape[1]} x {values.shape[2]} float16, {arguments.cache or 'drawn'}, batches of {BATCH}")
    table = [(way, size / taken, "GB/s decoded") for way, taken in times.items()]
    memmap = times["numpy memmap, raw"]
    ratios = {
        "ratio_oindex": times["zarr-python oindex, zstd"] / times["ours, zstd"],
        "ratio_memmap": memmap / times["ours, none"],
        "ratio_memmap_zstd": memmap / times["ours, zstd"],
        "ratio_tensorstore": times["tensorstore, none"] / times["ours, none"],
        "ratio_tensorstore_zstd": times["tensorstore, zstd"] / times["ours, zstd"],
    }
    show(table, ratios, arguments.json)


if __name__ == "__main__":
    main()
