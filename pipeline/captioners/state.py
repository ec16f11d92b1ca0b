"""What a decoder remembers of unfinished captions between two words, and what selecting some of them keeps.

Owns the state that every decoder here uses. Does not know what is remembered.
"""

from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from pipeline.captioners.captioner import regrouped
from pipeline.captioners.rows import Rows


class OfImages(Protocol):
    """What the captions of B images share."""

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        ...

    def __len__(self) -> int:
        """B."""
        ...


class Remembered(NamedTuple):
    """B images with K captions each, between two words; N = B x K.

    Attributes:
        shared: of the images.
        rows: of the captions.
        memory: (N, ..) each, what a caption remembers.
        constants: what is the same for all of them.
    """

    shared: Any
    rows: Rows
    memory: tuple[Tensor, ...]
    constants: Any = None

    @classmethod
    def of(cls, shared: OfImages, memory: tuple[Tensor, ...], constants: Any = None) -> Self:
        """One caption of each image; memory (B, ..)."""
        return cls(shared, _even(len(shared), 1, memory[0].device), memory, constants)

    def select(self, rows: Tensor) -> Self:
        """The captions `rows`, (M,) int64, in that order."""
        images, captions = regrouped(rows, len(self.rows) // len(self.shared))
        shared = self.shared
        if not torch.equal(images, torch.arange(len(shared), device=rows.device)):
            shared = shared.select(images)
        same = len(rows) == len(self.rows) and shared is self.shared
        own = self.rows if same else _even(len(images), captions, rows.device)
        return self._replace(shared=shared, rows=own, memory=tuple(kept[rows] for kept in self.memory))


def _even(images: int, captions: int, device: torch.device) -> Rows:
    """The same number of captions for every image."""
    return Rows(torch.arange(images).repeat_interleave(captions).numpy(), images, device)
