"""Random reads of whole rows from a cache: ours, beside other ways to read the same features, in one run.

python -m bench.read [--json]

Features of 93 % zeros, as a trained backbone with ReLU gives them; page cache warm.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from bench.machine import seconds, show, wants_json
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import encode_row
from pipeline.features.store import Codec, Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, write_shard

IMAGES, SHARD, GRID, CHANNELS, BATCH = 192, 64, (14, 14), 1280, 32


def features() -> NDArray[np.float16]:
    generator = np.random.default_rng(0)
    size = (IMAGES, GRID[0] * GRID[1], CHANNELS)
    values = np.abs(generator.standard_normal(size, dtype=np.float32))
    return (values * (generator.random(size, dtype=np.float32) > 0.93)).astype(np.float16)


def ours(folder: Path, values: NDArray[np.float16], codec: Codec) -> FeatureReader:
    """A cache of ours."""
    fields = {"bench": "read"}
    layout = Layout(GRID, GRID[0] * GRID[1], CHANNELS, "float16", codec, SHARD, None)
    hashes = [f"{row:064x}" for row in range(IMAGES)]
    pairs = []
    for shard in plan(fingerprint_of(fields), hashes, layout):
        path = folder / f"{shard.key}.shard"
        rows = values[shard.start : shard.stop].astype(np.float32)
        write_shard(path, [encode_row(row, layout, "bench") for row in rows], layout)
        pairs.append((shard, path))
    assemble(folder / f"{codec}.zarr", pairs, layout, fields, [str(row) for row in range(IMAGES)], hashes)
    return FeatureReader(folder / f"{codec}.zarr")


def others(folder: Path, values: NDArray[np.float16]) -> None:
    np.save(folder / "features.npy", values)
    with h5py.File(folder / "features.h5", "w") as file:
        file.create_dataset("features", data=values, chunks=(1, *values.shape[1:]))


def main() -> None:
    as_json = wants_json(str(__doc__))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = features()
        others(folder, values)
        compressed, plain = ours(folder, values, "zstd"), ours(folder, values, "none")
        array = zarr.open_array(compressed.path / "regions", mode="r")
        raw = np.load(folder / "features.npy", mmap_mode="r")
        generator = np.random.default_rng(1)

        def rows() -> NDArray[np.int64]:
            return generator.choice(IMAGES, BATCH, replace=False)

        with h5py.File(folder / "features.h5") as file:
            dataset = file["features"]
            ways: dict[str, Callable[[], Any]] = {
                "ours (zstd, checked)": lambda: compressed.read(rows().tolist()),
                "ours (none, checked)": lambda: plain.read(rows().tolist()),
                "zarr-python oindex": lambda: array.oindex[rows()],
                "zarr-python row by row": lambda: [array[row] for row in rows()],
                "h5py, raw, sorted rows": lambda: dataset[sorted(rows())],
                "numpy memmap, raw": lambda: np.array(raw[rows()]),
            }
            times = {way: seconds(call, 4) for way, call in ways.items()}
    size = BATCH * values[0].nbytes / 1e9
    table = [(way, size / taken, "GB/s decoded") for way, taken in times.items()]
    zstd, none, oindex, memmap = (
        times[way]
        for way in ("ours (zstd, checked)", "ours (none, checked)", "zarr-python oindex", "numpy memmap, raw")
    )
    ratios = {"ratio_oindex": oindex / zstd, "ratio_memmap": memmap / zstd, "ratio_memmap_none": memmap / none}
    show(table, ratios, as_json)


if __name__ == "__main__":
    main()
