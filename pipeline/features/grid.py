"""The grid a decoder asks for, from the grid a backbone has.

Owns adaptive average pooling as a fixed linear map over regions. Knows neither backbones nor decoders.
"""

import numpy as np
from numpy.typing import NDArray


def decoder_grid(native: tuple[int, int], wanted: int | str) -> tuple[int, int]:
    """Rows and columns a decoder sees: `wanted` x `wanted`, or those of the backbone for "native"."""
    return native if isinstance(wanted, str) else (wanted, wanted)


def pooling(native: tuple[int, int], wanted: tuple[int, int]) -> NDArray[np.float32] | None:
    """Adaptive average pooling, as a matrix to be multiplied by (R, C) regions; None where nothing changes.

    Cell i of n is the mean of the native cells floor(i m / n) to ceil((i + 1) m / n), as in
    `torch.nn.AdaptiveAvgPool2d`, so a finer grid than the native one repeats and overlaps cells.

    Args:
        native: rows and columns of the cache.
        wanted: rows and columns of the decoder.

    Returns:
        (R', R) float32, rows of sum 1, both row-major.
    """
    if native == wanted:
        return None
    rows, columns = (_axis(have, want) for have, want in zip(native, wanted, strict=True))
    return np.kron(rows, columns).astype(np.float32)


def _axis(have: int, want: int) -> NDArray[np.float64]:
    weights = np.zeros((want, have))
    for cell in range(want):
        first, last = cell * have // want, -(-(cell + 1) * have // want)
        weights[cell, first:last] = 1 / (last - first)
    return weights
