"""A finished store of any layout, in milliseconds."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.features.integrity import work_file
from pipeline.features.quantise import calibrate
from pipeline.features.rows import encode_row
from pipeline.features.store import Codec, Dtype, Layout, fingerprint_of, plan
from pipeline.features.writer import assemble, write_shard
from pipeline.files import Workspace

GRID, CELLS, CHANNELS, IMAGES, SHARD = (2, 3), 6, 5, 7, 3
FIELDS: dict[str, Any] = {"backbone": "resnet18", "image_size": 64}
IDS = [f"image {row} é.jpg" for row in range(IMAGES)]
HASHES = [f"{row:064x}" for row in range(IMAGES)]
KINDS: list[tuple[Dtype, Codec]] = [(dtype, codec) for dtype in get_args(Dtype) for codec in get_args(Codec)]


def features(images: int = IMAGES, cells: int = CELLS, channels: int = CHANNELS) -> NDArray[np.float32]:
    """Features of both signs, half of them zero, (N, R, C); image 4 is all zeros."""
    generator = np.random.default_rng(3)
    values = generator.standard_normal((images, cells, channels)) * (generator.random((images, cells, channels)) < 0.5)
    values[4] = 0
    return values.astype(np.float32)


def layout_of(
    regions: NDArray[np.float32],
    dtype: Dtype = "float16",
    codec: Codec = "zstd",
    shard_images: int = SHARD,
    grid: tuple[int, int] | None = GRID,
) -> Layout:
    """A layout for some features, uint8 calibrated on all of them."""
    quantisation = calibrate(regions) if dtype == "uint8" else None
    return Layout(grid, regions.shape[1], regions.shape[2], dtype, codec, shard_images, quantisation)


def build(root: Path, regions: NDArray[np.float32], layout: Layout, fields: dict[str, Any] = FIELDS) -> Workspace:
    """A workspace with the store and the work that it was put together from."""
    workspace, fingerprint = Workspace(root), fingerprint_of(fields)
    shards = plan(fingerprint, HASHES, layout)
    pairs = [(shard, work_file(workspace, fingerprint, shard.key)) for shard in shards]
    for shard, path in pairs:
        write_shard(path, [encode_row(row, layout, "x") for row in regions[shard.start : shard.stop]], layout)
    assemble(workspace.features, pairs, layout, fields, IDS, HASHES)
    return workspace
