"""Batches of images with all their captions, in an order that the seed alone decides.

Owns the grouping of captions by image, the reading ahead, and a batch's way to the device. Does not know what is done
with a batch, nor how features lie on the disk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap

import numpy as np
import torch
from torch import Tensor

from pipeline.ahead import ahead
from pipeline.features.grid import Grid
from pipeline.features.reader import FeatureReader, Reading
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import PAD
from pipeline.training.order import shuffled
from pipeline.training.view import View

_AHEAD = 2  # batches on their way from the disk while one is computed
_SEARCHED = 64  # images searched together


@dataclass(frozen=True)
class Batch:
    """B images with up to K captions each; images and captions are sorted by length, longest first.

    Attributes:
        rows: of the images, in the data set.
        regions: (B, N, C) on the device, in the cache's cells.
        captions: (B, K, T) int64 on the device, `START w1 .. wn END PAD ..`.
        lengths: (B, K) int64 on the CPU, words with START and END; 0 where there is no caption.
    """

    rows: tuple[int, ...]
    regions: Tensor
    captions: Tensor
    lengths: Tensor

    @property
    def counts(self) -> Tensor:
        """Its words (END is one, START is not) and its captions: (2,) int64 on the CPU."""
        return torch.stack(((self.lengths - 1).clamp(min=0).sum(), (self.lengths > 0).sum()))


@dataclass(frozen=True)
class Coming:
    """Rows on their way into memory that a GPU can copy from by itself."""

    stored: Tensor
    reading: Reading


class Regions:
    """Rows of the cache as tensors on the decoder's device; `view` says what they are to be seen through."""

    def __init__(self, reader: FeatureReader, grid: Grid, device: torch.device, dtype: torch.dtype) -> None:
        self.reader, self.device, self.dtype = reader, device, dtype
        self.view = View(reader.grid, grid, reader.quantisation, device, dtype)

    def start(self, rows: Sequence[int]) -> Coming:
        """Begin to read."""
        size = (len(rows), self.reader.layout.cells, self.reader.channels)
        stored = torch.empty(size, dtype=getattr(torch, self.reader.layout.dtype), pin_memory=_pins(self.device))
        return Coming(stored, self.reader.start(rows, stored.numpy()))

    def ready(self, coming: Coming) -> Tensor:
        """Wait for what was begun: (B, N, C)."""
        coming.reading.result()
        return self.view.see(coming.stored)

    def parts(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """All of many rows, as many at once as are searched together: the rows and (B, N, C)."""
        cut = (rows[start : start + _SEARCHED] for start in range(0, len(rows), _SEARCHED))
        coming = ahead(((part, self.start(part)) for part in cut), 1)
        return starmap(lambda part, features: (part, self.ready(features)), coming)


def _pins(device: torch.device) -> bool:
    """Whether memory is to be locked: a GPU copies from locked memory while the CPU goes on."""
    return device.type == "cuda"


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if _pins(device) else tensor.to(device)


class CaptionedImages:
    """The images of a split that have captions, with their features.

    Args:
        captions: of all splits.
        rows: of the split.
        regions: of the cache.
        window: images shuffled together; None is all.
    """

    def __init__(
        self, captions: EncodedCaptions, rows: Sequence[int], regions: Regions, window: int | None = None
    ) -> None:
        wanted = np.isin(captions.row, rows)
        self._captions = captions
        self._lines: dict[int, list[int]] = {}
        for line in np.flatnonzero(wanted).tolist():
            self._lines.setdefault(int(captions.row[line]), []).append(line)
        for lines in self._lines.values():
            lines.sort(key=lambda line: -int(captions.lengths[line]))
        self.regions, self._window = regions, window

    def __len__(self) -> int:
        return len(self._lines)

    def epoch(self, size: int, seed: int, epoch: int, first: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """All images once, in an order drawn from `seed` and `epoch`, from batch `first` on.

        Args:
            size: images a batch, of all ranks together.
            seed: of the order.
            epoch: its number.
            first: batches to leave out; nothing of them is read.
            rank: read every `ranks`-th image of each batch only, from this one on: the shares of all ranks are the
                batch of one process. A batch of fewer images than ranks leaves some ranks a share of no image.
            ranks: how many there are.
        """
        rows = np.array(sorted(self._lines), dtype=np.int64)
        window = self._window or max(1, len(rows))
        order = shuffled(rows, self.regions.reader.layout.shard_images, window, seed, epoch)
        return self._read(order.tolist(), size, first, slice(rank, None, ranks))

    def in_order(self, size: int) -> Iterator[Batch]:
        """All images once, by row."""
        return self._read(sorted(self._lines), size)

    def _read(self, rows: list[int], size: int, first: int = 0, share: slice = slice(None)) -> Iterator[Batch]:
        starts = range(first * size, len(rows), size)
        parts = (self._sorted(rows[start : start + size])[share] for start in starts)
        coming = ahead(((part, self.regions.start(part)) for part in parts), _AHEAD)
        return starmap(self._batch, coming)  # which, unlike a loop, holds none of them longer

    def _batch(self, rows: list[int], features: Coming) -> Batch:
        captions, lengths = self._padded(rows)
        return Batch(tuple(rows), self.regions.ready(features), _sent(captions, self.regions.device), lengths)

    def _sorted(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda row: -int(self._captions.lengths[self._lines[row][0]]))

    def _padded(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        lines = [self._lines[row] for row in rows]
        longest = max((int(self._captions.lengths[own[0]]) for own in lines), default=0)
        words = np.full((len(rows), max(map(len, lines), default=0), longest), PAD, dtype=np.int64)
        lengths = np.zeros(words.shape[:2], dtype=np.int64)
        for image, own in enumerate(lines):
            words[image, : len(own)] = self._captions.words[own, :longest]
            lengths[image, : len(own)] = self._captions.lengths[own]
        return torch.from_numpy(words), torch.from_numpy(lengths)
