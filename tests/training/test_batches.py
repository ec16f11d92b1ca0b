"""Every image once an epoch, with all its captions, in an order that the seed decides."""

import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.features.grid import pooling
from pipeline.features.reader import FeatureReader
from pipeline.language.captions import EncodedCaptions
from pipeline.training.batches import Batch, CaptionedImages, Regions
from tests.features.builders import build, features, layout_of
from tests.training.conftest import MemoryReader

# rows 0..6; row 3 has no caption, row 5 belongs to another split
CAPTIONS = {
    0: [[1, 4, 2]],
    1: [[1, 5, 2], [1, 6, 7, 8, 2]],
    2: [[1, 9, 9, 2]],
    4: [[1, 2]],
    5: [[1, 7, 2]],
    6: [[1, 8, 2]],
}


def images(reader: MemoryReader, grid: tuple[int, int] = (2, 3)) -> CaptionedImages:
    rows = [row for row, own in CAPTIONS.items() for _ in own]
    encoded = EncodedCaptions.of(rows, [caption for own in CAPTIONS.values() for caption in own])
    regions = Regions(cast(Any, reader), grid, torch.device("cpu"), torch.float32)
    return CaptionedImages(encoded, [0, 1, 2, 3, 4, 6], regions)


def said(batches: list[Batch]) -> list[list[int]]:
    found = []
    for batch in batches:
        for words, lengths in zip(batch.captions.tolist(), batch.lengths.tolist(), strict=True):
            found += [line[:length] for line, length in zip(words, lengths, strict=True) if length]
    return found


def test_an_epoch_holds_every_caption_once() -> None:
    reader = MemoryReader(7)
    found = said(list(images(reader).epoch(2, seed=1, epoch=0)))
    assert sorted(found) == sorted(caption for row, own in CAPTIONS.items() if row != 5 for caption in own)


def test_regions_belong_to_their_captions() -> None:
    reader = MemoryReader(7)
    for batch in images(reader).epoch(4, seed=1, epoch=0):
        for regions, words, lengths in zip(batch.regions, batch.captions, batch.lengths, strict=True):
            row = next(row for row, own in CAPTIONS.items() if words[0, : lengths[0]].tolist() in own)
            np.testing.assert_array_equal(regions.numpy(), reader.features[row].astype(np.float32))


def test_longest_first_within_a_batch_and_an_image() -> None:
    for batch in images(MemoryReader(7)).epoch(6, seed=0, epoch=0):
        assert batch.lengths[:, 0].tolist() == sorted(batch.lengths[:, 0].tolist(), reverse=True)
        assert (batch.lengths.diff(dim=1) <= 0).all()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = []
    for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0)):
        reader = MemoryReader(7)
        list(images(reader).epoch(2, seed, epoch))
        orders.append(reader.asked)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]
    assert orders[2] != orders[3]  # seed and epoch are two numbers, not their sum


def test_an_epoch_can_be_entered_in_the_middle() -> None:
    whole = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3)))
    start = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3))[:1])
    rest = said(list(images(MemoryReader(7)).epoch(2, seed=4, epoch=3, first=1)))
    assert start + rest == whole


def test_reading_is_ahead_but_no_row_is_read_twice() -> None:
    reader = MemoryReader(7)
    batches = images(reader).epoch(1, seed=1, epoch=0)
    next(batches)
    assert len(reader.asked) == 3
    list(batches)
    assert sorted(row for rows in reader.asked for row in rows) == [0, 1, 2, 4, 6]


def test_regions_are_the_caches_cells() -> None:
    reader = MemoryReader(7)
    own = images(reader, (3, 2))
    np.testing.assert_array_equal(next(own.in_order(1)).regions[0].numpy(), reader.features[0].astype(np.float32))
    assert own.regions.view.pooling is not None
    np.testing.assert_array_equal(own.regions.view.pooling.numpy(), pooling((2, 3), (3, 2)))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_in_order_goes_by_row(size: int) -> None:
    reader = MemoryReader(7)
    assert len(said(list(images(reader).in_order(size)))) == 6
    assert sorted(row for rows in reader.asked for row in rows) == [0, 1, 2, 4, 6]


CPU = torch.device("cpu")


def many(
    reader: Any, window: int | None = None, images: int = 7, dtype: torch.dtype = torch.float32
) -> CaptionedImages:
    """All images of a reader, image i with 1 to 3 captions that name it."""
    rows = [row for row in range(images) for _ in range(1 + row % 3)]
    encoded = EncodedCaptions.of(rows, [[1, *[10 + row] * (1 + row * 5 % 4), 2] for row in rows])
    return CaptionedImages(encoded, range(images), Regions(reader, (2, 3), CPU, dtype), window)


def contents(found: list[Batch]) -> list[tuple[Any, ...]]:
    return [(b.regions.tolist(), b.captions.tolist(), b.lengths.tolist()) for b in found]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_memory_and_streaming_give_the_same_batches(tmp_path: Path, codec: Any, window: int | None) -> None:
    values = features()
    path = build(tmp_path, values, layout_of(values, codec=codec)).features
    streaming, staying = FeatureReader(path), FeatureReader(path)
    staying.keep(range(7))
    for epoch in range(3):  # the first fills the memory, the later ones read from there
        streamed = contents(list(many(streaming, window).epoch(2, 5, epoch)))
        assert contents(list(many(staying, window).epoch(2, 5, epoch))) == streamed
        assert contents(list(many(staying, window).epoch(2, 5, epoch, first=2))) == streamed[2:]


def test_a_window_orders_what_the_shards_hold() -> None:
    reader = MemoryReader(12, shard_images=4)
    list(many(reader, window=4, images=12).epoch(4, 1, 0))
    assert sorted(sorted(rows) for rows in reader.asked) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_an_epoch_entered_in_the_middle_reads_nothing_of_what_came_before() -> None:
    whole, rest = MemoryReader(11), MemoryReader(11)
    list(many(whole, 5, 11).epoch(2, 4, 3))
    list(many(rest, 5, 11).epoch(2, 4, 3, first=4))
    assert rest.asked == whole.asked[4:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_shares_of_all_ranks_are_the_batch_of_one_process(ranks: int) -> None:
    alone = list(many(MemoryReader(11), 5, 11).epoch(4, 1, 2, first=1))
    readers = [MemoryReader(11) for _ in range(ranks)]
    shares = [list(many(r, 5, 11).epoch(4, 1, 2, 1, rank, ranks)) for rank, r in enumerate(readers)]
    for number, batch in enumerate(alone):
        for image in range(len(batch.lengths)):
            share, place = shares[image % ranks][number], image // ranks
            assert torch.equal(share.regions[place], batch.regions[image])
            words = [
                w[:n] for w, n in zip(batch.captions[image].tolist(), batch.lengths[image].tolist(), strict=True) if n
            ]
            own = zip(share.captions[place].tolist(), share.lengths[place].tolist(), strict=True)
            assert [line[:length] for line, length in own if length] == words
        assert sum(len(own[number].lengths) for own in shares) == len(batch.lengths)
    asked = sorted(row for reader in readers for rows in reader.asked for row in rows)
    assert len(asked) == len(set(asked)) == 7


def test_a_share_of_no_image_is_an_empty_batch() -> None:
    *_, last = many(MemoryReader(7)).epoch(3, 0, 0, rank=1, ranks=2)
    assert (last.regions.shape, last.captions.shape, last.lengths.shape) == ((0, 6, 5), (0, 0, 0), (0, 0))


def test_streaming_holds_three_batches_at_most() -> None:
    reader = MemoryReader(40)
    start, alive, most = reader.start, list[weakref.ref[np.ndarray]](), 0

    def noted(rows: list[int], target: np.ndarray) -> Any:
        nonlocal most
        alive.append(weakref.ref(target))
        most = max(most, sum(one() is not None for one in alive))
        return start(rows, target)

    reader.start = noted  # type: ignore[method-assign]
    for batch in many(reader, None, 40, torch.float64).epoch(2, 0, 0):
        del batch
    assert len(alive) == 20
    assert most == 3


def test_memory_is_pinned_for_gpus_and_never_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, empty = [], torch.empty

    def noted(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*size, **options)

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the CPU needs no pinned copy")

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    list(many(MemoryReader(7)).epoch(2, 0, 0))
    assert pinned
    assert not any(pinned)
    pinned.clear()
    Regions(cast(Any, MemoryReader(7)), (2, 3), torch.device("cuda"), torch.float16).start([1])
    assert pinned == [True]
