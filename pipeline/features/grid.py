"""The grid a decoder asks for, from the grid a backbone has.

Owns adaptive average pooling as a fixed linear map over regions. Knows neither backbones nor decoders.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError

Grid = tuple[int, int] | None  # None: regions without a place in the image, such as boxes


def decoder_grid(native: Grid, wanted: int | str) -> Grid:
    """Rows and columns a decoder sees: `wanted` x `wanted`, or those of the cache for "native".

    Raises:
        CacheError: the cache has no grid that could be pooled.
    """
    if isinstance(wanted, str):
        return native
    if native is None:
        raise CacheError(
            f"train.grid is {wanted}, but the regions of this cache are boxes: they have no place in a grid "
            "(its attribute grid is null) and cannot be pooled. Set train.grid to native."
        )
    return wanted, wanted


def pooling(native: Grid, wanted: Grid) -> NDArray[np.float32] | None:
    """Adaptive average pooling, as a matrix to be multiplied by (R, C) regions; None where nothing changes.

    Cell i of n is the mean of the native cells floor(i m / n) to ceil((i + 1) m / n), as in
    `torch.nn.AdaptiveAvgPool2d`, so a finer grid than the native one repeats and overlaps cells.

    Args:
        native: rows and columns of the cache.
        wanted: rows and columns of the decoder.

    Returns:
        (R', R) float32, rows of sum 1, both row-major.

    Raises:
        CacheError: one of them is no grid and the other is.
    """
    if native == wanted:
        return None
    if native is None or wanted is None:
        raise CacheError(
            f"The decoder was trained on regions of grid {_told(wanted)}, but these have {_told(native)}. "
            'Run "dvc repro train".'
        )
    rows, columns = (_axis(have, want) for have, want in zip(native, wanted, strict=True))
    return np.kron(rows, columns).astype(np.float32)


def _told(grid: Grid) -> str:
    return "none (boxes)" if grid is None else f"{grid[0]} x {grid[1]}"


def _axis(have: int, want: int) -> NDArray[np.float64]:
    weights = np.zeros((want, have))
    for cell in range(want):
        first, last = cell * have // want, -(-(cell + 1) * have // want)
        weights[cell, first:last] = 1 / (last - first)
    return weights
