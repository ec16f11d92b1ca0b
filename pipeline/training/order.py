"""The order in which an epoch sees the images.

Owns the one shuffle: of shards, then of images within a window. Does not know how images are read, nor whether they
come from memory or from the disk: the order is the same.
"""

import numpy as np
from numpy.typing import NDArray


def shuffled(rows: NDArray[np.int64], shard_images: int, window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """All rows once, in an order that the arguments alone decide.

    A window that holds all rows is a full permutation, whatever the shards. A smaller one meets whole shards, in an
    order of their own, and permutes each run of `window` images: reading touches few shards at a time, so that a
    cache larger than memory is read nearly in sequence. With at least a shard's images in the window, a shard lies
    in two windows at most, and these are neighbours.

    Args:
        rows: (N,) of the cache, ascending.
        shard_images: consecutive rows that share a file.
        window: images shuffled together.
        seed: of the order.
        epoch: its number.
    """
    chance = np.random.default_rng((seed, epoch))
    order = rows.copy() if window >= len(rows) else _by_shard(rows, shard_images, chance)
    for start in range(0, len(order), window):
        chance.shuffle(order[start : start + window])
    return order


def _by_shard(rows: NDArray[np.int64], shard_images: int, chance: np.random.Generator) -> NDArray[np.int64]:
    shards = np.split(rows, np.flatnonzero(np.diff(rows // shard_images)) + 1)
    return np.concatenate([shards[number] for number in chance.permutation(len(shards))])
