"""Features as bytes: a scale a channel, found once, fixed from then on.

Owns the arithmetic of `encode.dtype: uint8`, all of it in float32 and rounding half to even, so that the same features
give the same bytes on every machine. Does not know where scales are kept.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError
from pipeline.features.store import Quantisation

_LEVELS = 255


def calibrate(regions: Iterable[NDArray[np.float32]]) -> Quantisation:
    """Choose each channel's scale from the features of some images: their range, divided into 255 steps.

    A channel that is zero in all of them gets the scale of the channel that reaches farthest: should it speak in a
    later image, its values are kept coarsely instead of being clipped. What is no number counts as nothing here;
    writing that image is refused with its name.

    Args:
        regions: (R, C) float32 each.

    Raises:
        CacheError: there is no image.
    """
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None
    for image in regions:
        known = image if np.isfinite(image).all() else np.where(np.isfinite(image), image, np.float32(0))
        low = np.minimum(0, known.min(axis=0)) if low is None else np.minimum(low, known.min(axis=0))
        high = np.maximum(0, known.max(axis=0)) if high is None else np.maximum(high, known.max(axis=0))
    if low is None or high is None:
        raise CacheError("Scales for encode.dtype uint8 need at least one image. Give images, or set float16.")
    return _divide(low.astype(np.float64), high.astype(np.float64))


def _divide(low: NDArray[np.float64], high: NDArray[np.float64]) -> Quantisation:
    """The quantisation of ranges that hold 0, (C,) each; a channel without one takes the widest."""
    width = (high - low) / _LEVELS
    widest, silent = width.argmax(), width < np.finfo(np.float32).tiny
    if silent[widest]:
        return Quantisation((1.0,) * len(width), (0,) * len(width))
    scale = np.where(silent, width[widest], width).astype(np.float32)
    zero = np.rint(-np.where(silent, low[widest], low) / scale)
    return Quantisation(tuple(scale.astype(np.float64).tolist()), tuple(zero.astype(np.int64).tolist()))


def quantise(regions: NDArray[np.float32], quantisation: Quantisation) -> NDArray[np.uint8]:
    """Round features to bytes: q = clip(rint(x / scale) + zero, 0, 255), in float32, rint rounding half to even.

    Args:
        regions: (..., C) finite float32.
        quantisation: of C channels.
    """
    with np.errstate(over="ignore"):  # beyond the range is clipped, however far
        steps = regions / quantisation.scales
    np.rint(steps, out=steps)
    steps += quantisation.zeros
    np.clip(steps, 0, _LEVELS, out=steps)
    return steps.astype(np.uint8)


def restore(stored: NDArray[np.generic], quantisation: Quantisation | None) -> NDArray[np.float32]:
    """What stored features mean: x = (q - zero) * scale in float32; floats mean themselves.

    Args:
        stored: (..., C), uint8 with a quantisation, else float16 or float32.
        quantisation: of C channels.
    """
    if quantisation is None:
        return stored.astype(np.float32, copy=False)
    restored = stored.astype(np.float32)
    restored -= quantisation.zeros
    restored *= quantisation.scales
    return restored
