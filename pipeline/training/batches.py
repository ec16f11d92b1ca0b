"""Batches of images with all their captions, in an order that the seed alone decides.

Owns the grouping of captions by image, the order of an epoch and the reading ahead. Does not know what is done with
a batch, nor how features are stored.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.features.grid import pooling
from pipeline.features.reader import FeatureReader, Reading
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import PAD

_AHEAD = 2  # batches on their way from the disk while one is computed


@dataclass(frozen=True)
class Batch:
    """B images with up to K captions each; images and captions are sorted by length, longest first.

    Attributes:
        regions: (B, R, C) on the device, the decoder's grid.
        captions: (B, K, T) int64 on the device, `START w1 .. wn END PAD ..`.
        lengths: (B, K) int64 on the CPU, words with START and END; 0 where there is no caption.
    """

    regions: Tensor
    captions: Tensor
    lengths: Tensor


class Regions:
    """Rows of the cache as tensors in the decoder's grid: the one way from features to a decoder."""

    def __init__(self, reader: FeatureReader, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
        matrix = pooling(reader.grid, grid)
        self.reader, self.device, self.dtype = reader, device, dtype
        self.pooling = None if matrix is None else torch.from_numpy(matrix).to(device)

    def start(self, rows: Sequence[int]) -> Reading:
        """Begin to read."""
        return self.reader.start(rows)

    def ready(self, reading: Reading) -> Tensor:
        """Wait for what was begun: (B, R, C)."""
        regions = torch.from_numpy(reading.result()).to(self.device)
        if self.pooling is None:
            return regions.to(self.dtype)
        return (self.pooling @ regions.float()).to(self.dtype)


class CaptionedImages:
    """The images of a split that have captions, with their features."""

    def __init__(self, captions: EncodedCaptions, rows: Sequence[int], regions: Regions) -> None:
        wanted = np.isin(captions.row, rows)
        self._captions = captions
        self._lines: dict[int, list[int]] = {}
        for line in np.flatnonzero(wanted).tolist():
            self._lines.setdefault(int(captions.row[line]), []).append(line)
        for lines in self._lines.values():
            lines.sort(key=lambda line: -int(captions.lengths[line]))
        self.regions = regions

    def __len__(self) -> int:
        return len(self._lines)

    def epoch(self, size: int, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """All images once, in an order drawn from `seed` and `epoch`, from batch `first` on."""
        rows = np.array(sorted(self._lines), dtype=np.int64)
        np.random.default_rng((seed, epoch)).shuffle(rows)
        return self._read(rows.tolist(), size, first)

    def in_order(self, size: int) -> Iterator[Batch]:
        """All images once, by row."""
        return self._read(sorted(self._lines), size, 0)

    def _read(self, rows: list[int], size: int, first: int) -> Iterator[Batch]:
        parts = [self._sorted(rows[start : start + size]) for start in range(first * size, len(rows), size)]
        reading: deque[Reading] = deque()
        for index, part in enumerate(parts):
            reading.extend(self.regions.start(ahead) for ahead in parts[index + len(reading) : index + 1 + _AHEAD])
            captions, lengths = self._padded(part)
            yield Batch(self.regions.ready(reading.popleft()), captions.to(self.regions.device), lengths)

    def _sorted(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda row: -int(self._captions.lengths[self._lines[row][0]]))

    def _padded(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        lines = [self._lines[row] for row in rows]
        longest = int(self._captions.lengths[lines[0][0]])
        words = np.full((len(rows), max(map(len, lines)), longest), PAD, dtype=np.int64)
        lengths = np.zeros(words.shape[:2], dtype=np.int64)
        for image, own in enumerate(lines):
            words[image, : len(own)] = self._captions.words[own, :longest]
            lengths[image, : len(own)] = self._captions.lengths[own]
        return torch.from_numpy(words), torch.from_numpy(lengths)
