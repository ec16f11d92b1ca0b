"""A finished cache of given features, without any encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.features.quantise import calibrate
from pipeline.features.reader import FeatureReader
from pipeline.features.rows import encode_row
from pipeline.features.store import Dtype, Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, write_shard

FIELDS = {"backbone": "none", "weights": "none"}


def noise(images: int, cells: int = 6, channels: int = 5) -> NDArray[np.float32]:
    """(N, R, C), exactly representable in float16, some of it zero and negative."""
    values = np.random.default_rng(images).integers(-300, 500, (images, cells, channels)).astype(np.float32)
    values[values > 400] = 0
    return values / np.float32(64)


def filled(
    path: Path,
    features: NDArray[np.float32],
    ids: Sequence[str],
    dtype: Dtype = "float16",
    grid: tuple[int, int] | None = (2, 3),
) -> FeatureReader:
    """Write features (N, R, C) as a store of two rows a shard, and open it."""
    quantisation = calibrate(features) if dtype == "uint8" else None
    layout = Layout(grid, features.shape[1], features.shape[2], dtype, "zstd", 2, quantisation)
    hashes = [f"hash of {name}" for name in ids]
    pairs = []
    for shard in plan(fingerprint_of(FIELDS), hashes, layout):
        target = path.parent / f"{shard.key}.shard"
        rows = [encode_row(features[row], layout, ids[row]) for row in range(shard.start, shard.stop)]
        write_shard(target, rows, layout)
        pairs.append((shard, target))
    assemble(path, pairs, layout, FIELDS, list(ids), hashes)
    return FeatureReader(path)
