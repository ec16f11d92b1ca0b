"""One shuffle: every image once, decided by seed and epoch, and few shards at a time."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.training.order import shuffled

SHARD = 8


def split(images: int = 101) -> NDArray[np.int64]:
    """Rows of a split that has some images of every shard, and all of few."""
    chance = np.random.default_rng(images)
    return np.sort(chance.choice(images * 3 // 2, images, replace=False)).astype(np.int64)


@pytest.mark.parametrize("window", [1, 7, 8, 33, 100, 101, 5000])
def test_every_image_once_whatever_the_window(window: int) -> None:
    rows = split()
    order = shuffled(rows, SHARD, window, 3, 1)
    assert order.tolist() != rows.tolist()
    assert sorted(order.tolist()) == rows.tolist() == split().tolist()  # and the rows given are left as they were


@pytest.mark.parametrize("window", [7, 5000])
def test_seed_and_epoch_alone_decide(window: int) -> None:
    orders = {key: tuple(shuffled(split(), SHARD, window, *key).tolist()) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(shuffled(split(), SHARD, window, 0, 1).tolist())


def test_a_window_of_all_images_is_a_full_permutation_whatever_the_shards() -> None:
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(2400):
        order = tuple(shuffled(np.arange(4), 2, 4, seed, 0).tolist())
        assert order == tuple(shuffled(np.arange(4), 64, 99, seed, 0).tolist())
        counts[order] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 49.7  # chi-squared, 23 degrees, p 0.001


def test_every_image_can_come_at_every_place_with_a_small_window() -> None:
    places = np.zeros((12, 12), int)
    for seed in range(600):
        places[shuffled(np.arange(12), 3, 4, seed, 0), np.arange(12)] += 1
    assert places.min() > 0


@pytest.mark.parametrize("window", [8, 9, 20, 64])
def test_a_window_touches_few_shards_and_a_shard_two_neighbouring_windows(window: int) -> None:
    order = shuffled(np.arange(200), SHARD, window, 5, 2) // SHARD  # the shard of each image
    windows = [set(order[start : start + window].tolist()) for start in range(0, 200, window)]
    assert max(map(len, windows)) <= math.ceil((window - 1) / SHARD) + 1
    for shard in range(25):
        touched = [number for number, shards in enumerate(windows) if shard in shards]
        assert len(touched) <= 2
        assert touched[-1] - touched[0] == len(touched) - 1


def test_shards_come_in_another_order_each_epoch() -> None:
    firsts = [tuple(shuffled(np.arange(40), SHARD, SHARD, 0, epoch)[::SHARD] // SHARD) for epoch in range(4)]
    assert len(set(firsts)) == 4
