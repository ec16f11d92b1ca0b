"""Batches of images with all their captions, in an order that the seed alone decides.

Owns the grouping of captions by image, the order of an epoch, the reading ahead, and what a decoder sees of stored
features. Does not know what is done with a batch, nor how features lie on the disk.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.features.grid import Grid, pooling
from pipeline.features.reader import FeatureReader, Reading
from pipeline.features.store import Quantisation
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


class View:
    """From features as they are stored to what a decoder sees of them: the one way, whoever stored them."""

    def __init__(
        self, native: Grid, wanted: Grid, quantisation: Quantisation | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Prepare the constants on the device.

        Args:
            native: the grid of the features.
            wanted: the decoder's grid.
            quantisation: what stored bytes mean; None for floats.
            device: where the decoder is.
            dtype: of what it sees.

        Raises:
            CacheError: one grid is none and the other is one.
        """
        matrix = pooling(native, wanted)
        self.device, self.dtype = device, dtype
        self._pooling = None if matrix is None else torch.from_numpy(matrix).to(device)
        self._meaning = quantisation and tuple(
            torch.from_numpy(constants).to(device) for constants in (quantisation.zeros, quantisation.scales)
        )

    def see(self, stored: NDArray[np.generic]) -> Tensor:
        """Send stored features to the device as they are, restore and pool them there.

        Args:
            stored: (B, R, C) in the cache's dtype.

        Returns:
            (B, R', C).
        """
        regions = torch.from_numpy(stored).to(self.device)
        if self._meaning:
            zeros, scales = self._meaning
            regions = regions.float().sub_(zeros).mul_(scales)  # as `features.quantise.restore`, to the last bit
        if self._pooling is not None:
            regions = self._pooling @ regions.float()
        return regions.to(self.dtype)


class Regions:
    """Rows of the cache as tensors in the decoder's grid."""

    def __init__(self, reader: FeatureReader, grid: Grid, device: torch.device, dtype: torch.dtype) -> None:
        self.reader, self.device, self.dtype = reader, device, dtype
        self._view = View(reader.grid, grid, reader.quantisation, device, dtype)

    def start(self, rows: Sequence[int]) -> Reading:
        """Begin to read."""
        return self.reader.start(rows)

    def ready(self, reading: Reading) -> Tensor:
        """Wait for what was begun: (B, R, C)."""
        return self._view.see(reading.result())


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
