"""Captions as rows, and what of a batch each of them looks at.

Owns the order in which unfinished captions stay a prefix, and where each word of a batch goes. Does not know what is
computed a row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.int64]


class Rows:
    """N captions, each of one of B images.

    Args:
        image: (N,) int64, the image of each.
        images: B.
        device: of the tensors.
    """

    def __init__(self, image: Places, images: int, device: torch.device) -> None:
        self.device = device
        self._image = image
        members = np.argsort(image, kind="stable")
        starts = np.searchsorted(image[members], np.arange(images + 1))
        self._column = np.empty_like(image)
        self._column[members] = np.arange(len(image)) - starts[image[members]]
        self.members, self.starts = torch.from_numpy(members), torch.from_numpy(starts)

    def __len__(self) -> int:
        return len(self._image)

    def images_of(self, count: int) -> Places:
        """The image of each of the first `count` rows."""
        return self._image[:count]

    @cached_property
    def image(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(self._image).to(self.device, non_blocking=True)

    def extent(self, count: int) -> tuple[int, int]:
        """How many leading images, and captions of each, hold the first `count` rows."""
        return int(self._image[:count].max()) + 1, int(self._column[:count].max()) + 1

    def places(self, count: int) -> Tensor:
        """Where in a rectangle of that extent each of the first `count` rows is: (count,) int64."""
        _, columns = self.extent(count)
        return torch.from_numpy(self._image[:count] * columns + self._column[:count]).to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Unrolled:
    """All words of a batch's captions, by step and within a step by row; the longest captions are the first rows.

    Attributes:
        rows: the captions that exist, longest first.
        counts: n of each step, how many rows still say a word.
        positions: (M,) where each word is among (B, K, steps) words.
    """

    rows: Rows
    counts: tuple[int, ...]
    positions: Places

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> "Unrolled":
        """Unroll captions of `lengths`, (B, K) int64 on the CPU, words with START and END; 0 where there is none."""
        said = lengths.numpy() - 1
        steps = int(said.max())
        captions = np.argsort(-said.ravel(), kind="stable")
        captions = captions[said.ravel()[captions] > 0]
        counts = (said.ravel()[:, None] > np.arange(steps)).sum(0)
        positions = np.concatenate([captions[:count] * steps + time for time, count in enumerate(counts)])
        rows = Rows(captions // lengths.shape[1], lengths.shape[0], device)
        return cls(rows, tuple(counts.tolist()), positions)

    @property
    def steps(self) -> int:
        return len(self.counts)

    def slices(self) -> list[slice]:
        """Of the M words, those of each step."""
        ends = np.cumsum(self.counts).tolist()
        return [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]

    def take(self, captions: Tensor) -> Tensor:
        """The words given, (M,) of (B, K, T) captions."""
        return captions[:, :, : self.steps].flatten()[self._places]

    def lay_out(self, values: Tensor, captions: int) -> Tensor:
        """Values of each word, (M, D), as (B, K, steps, D), zero where no word is."""
        count = len(self.rows.starts) - 1
        flat = values.new_zeros(count * captions * self.steps, values.shape[1]).index_copy(0, self._places, values)
        return flat.view(count, captions, self.steps, -1)

    @cached_property
    def _places(self) -> Tensor:
        return torch.from_numpy(self.positions).to(self.rows.device, non_blocking=True)

    def by_caption(self) -> Tensor:
        """The order of the M words by image, caption and step: (M,) int64."""
        return torch.from_numpy(np.argsort(self.positions)).to(self.rows.device, non_blocking=True)

    def before(self) -> Tensor:
        """For each of the M words which row of (N + M, ...) held its caption's state before it; N first states lead."""
        parts, start = [np.arange(self.counts[0])], len(self.rows)
        for count, following in zip(self.counts, self.counts[1:], strict=False):
            parts.append(start + np.arange(following))
            start += count
        return torch.from_numpy(np.concatenate(parts)).to(self.rows.device, non_blocking=True)
