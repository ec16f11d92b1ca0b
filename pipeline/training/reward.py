"""CIDEr-D of captions that are numbers, for a whole batch at once on the device: what self-critical training rewards.

Owns the same formula as `scoring.cider`, by tensor operations, and the frequencies of the references' n-grams. Does not
know where captions come from, nor what is learnt from the reward.

END is a word like any other, in captions and in references, so a caption that stops without it lacks four n-grams.

An n-gram's number is exact whatever the vocabulary's size: its first n - 1 words have a number among the references'
(n - 1)-grams, and that number and the last word make one key that fits into 64 bits.

Shapes: B images, K captions of each, R references of each, T words, 4 lengths of n-grams; D stands for any such sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.scoring.cider import SIGMA
from pipeline.scoring.ngrams import LONGEST

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Table:
    """The references' n-grams of one length.

    Attributes:
        keys: (U,) int64, rising; an n-gram's number is its place.
        weights: (U,) float64, log of the share of images whose references hold it, negated.
    """

    keys: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Vectors:
    """Captions as tf-idf, an entry for each place where an n-gram begins.

    Attributes:
        numbers: (D, 4, T) int64, of the n-gram that begins here; -1 where none does or no reference holds it.
        counts: (D, 4, T) float64, how often the caption holds it; 0 where none begins.
        squares: (D, 4, T) float64, the square of its weight.
        norms: (D, 4) float64.
        lengths: (D,) int64.
    """

    numbers: Tensor
    counts: Tensor
    squares: Tensor
    norms: Tensor
    lengths: Tensor


class CiderReward:
    """Scores captions against their images' references; document frequencies are counted once.

    Args:
        references: of each image by its row: numbers `w1 .. wn END`, at least one reference an image.
        vocabulary_size: V; all numbers are below.
        device: to compute on.
    """

    def __init__(self, references: Mapping[int, Sequence[Sequence[int]]], vocabulary_size: int, device: torch.device):
        self.device, self._vocabulary_size = device, vocabulary_size
        whole = [reference for others in references.values() for reference in others]
        counts = np.array([len(others) for others in references.values()], dtype=np.int64)
        self._lengths = np.array([len(reference) for reference in whole], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._lengths)))
        ends = np.cumsum(counts)
        self._own = {row: slice(end - count, end) for row, end, count in zip(references, ends, counts, strict=True)}
        words = np.fromiter((word for reference in whole for word in reference), np.int64)
        images = np.repeat(np.repeat(np.arange(len(counts)), counts), self._lengths)
        left = np.repeat(self._starts[1:], self._lengths) - np.arange(len(words))
        self._tables = [self._sent(*table) for table in _tables(words, left, images, len(counts), vocabulary_size)]
        self._words = torch.from_numpy(words).to(device)
        self._unknown = float(np.log(len(counts)))

    def _sent(self, keys: Numbers, weights: NDArray[np.float64]) -> _Table:
        return _Table(torch.from_numpy(keys).to(self.device), torch.from_numpy(weights).to(self.device))

    @torch.no_grad()
    def __call__(self, rows: Sequence[int], captions: Tensor, lengths: Tensor) -> Tensor:
        """CIDEr-D of each caption, 0 to 10 as `CiderD.score` gives it.

        Args:
            rows: of the B images.
            captions: (B, K, T) int64 on the device, `w1 .. wn END`, then anything; without END where one was cut.
            lengths: (B, K) int64 on the device, words with END.

        Returns:
            (B, K) float64.
        """
        said = self._vectors(captions, lengths)
        references, exist = self._references(rows)
        others = self._vectors(*references)
        theirs = torch.stack([_met(said, others, size) for size in range(LONGEST)], -2).double()
        # An n-gram said c times is met at c places: each takes its c-th part of min(c w, c' w) c' w.
        ours = said.counts[:, :, None]
        products = torch.minimum(ours, theirs) * theirs * said.squares[:, :, None] / ours.clamp(min=1)
        norms = said.norms[:, :, None] * others.norms[:, None]
        cosines = torch.where(norms > 0, products.sum(-1) / norms, 0.0)
        apart = (said.lengths[:, :, None] - others.lengths[:, None]).double()
        scores = cosines.mean(-1) * torch.exp(-(apart**2) / (2 * SIGMA**2))
        return 10 * (scores * exist[:, None]).sum(-1) / exist.sum(-1)[:, None]

    def _references(self, rows: Sequence[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Words (B, R, T) and lengths (B, R) of the images' references, and which of them exist, (B, R) bool."""
        own = [self._own[row] for row in rows]
        counts = np.array([part.stop - part.start for part in own])
        columns = np.arange(counts.max())
        exist = columns < counts[:, None]
        places = np.where(exist, np.array([part.start for part in own])[:, None] + columns, 0)
        lengths = np.where(exist, self._lengths[places], 0)
        starts = torch.from_numpy(self._starts[places]).to(self.device)
        steps = torch.arange(int(lengths.max()), device=self.device)
        words = self._words[(starts[..., None] + steps).clamp(max=len(self._words) - 1)]
        return (words, torch.from_numpy(lengths).to(self.device)), torch.from_numpy(exist).to(self.device)

    def _vectors(self, words: Tensor, lengths: Tensor) -> _Vectors:
        """Captions (D, T) of `lengths` (D,) as tf-idf."""
        steps = torch.arange(words.shape[-1], device=self.device)
        numbers, counts, weights = [], [], []
        number = torch.zeros_like(words)
        same = torch.ones((), dtype=torch.bool, device=self.device)
        for size, table in enumerate(self._tables, 1):
            last = words.roll(1 - size, -1)  # of the n-gram that begins here
            exists = steps + size <= lengths[..., None]
            number, weight = self._looked_up(table, number, last, exists)
            same = same & (last[..., None] == last[..., None, :])  # places where the same n-gram begins
            numbers.append(number)
            counts.append((same & exists[..., None, :] & exists[..., None]).sum(-1))
            weights.append(weight)
        count, square = torch.stack(counts, -2).double(), torch.stack(weights, -2) ** 2
        # The square of c w, shared by the c places.
        return _Vectors(torch.stack(numbers, -2), count, square, (count * square).sum(-1).sqrt(), lengths)

    def _looked_up(self, table: _Table, number: Tensor, last: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers and weights of n-grams, from the numbers of their first n - 1 words and their last words."""
        keys = number * self._vocabulary_size + last
        places = torch.searchsorted(table.keys, keys).clamp(max=len(table.keys) - 1)
        known = exists & (number >= 0) & (table.keys[places] == keys)
        return torch.where(known, places, -1), torch.where(known, table.weights[places], self._unknown)


def _met(said: _Vectors, others: _Vectors, size: int) -> Tensor:
    """How often each reference holds each n-gram of a caption: (B, K, R, T)."""
    ours, theirs = said.numbers[:, :, None, size, :, None], others.numbers[:, None, :, size, None, :]
    return ((ours == theirs) & (ours >= 0)).sum(-1)


def _tables(
    words: Numbers, left: Numbers, images: Numbers, count: int, vocabulary_size: int
) -> list[tuple[Numbers, NDArray[np.float64]]]:
    """Keys and weights of the n-grams of all references, one after the other, for n = 1 to 4.

    Args:
        words: (M,) of all references.
        left: (M,) words of the reference from here on, this one counted.
        images: (M,) the image of each, counted from 0.
        count: of the images.
        vocabulary_size: V.
    """
    tables, number = [], np.zeros_like(words)
    for size in range(1, LONGEST + 1):
        places = np.flatnonzero(left >= size)
        keys, own = np.unique(number[places] * vocabulary_size + words[places + size - 1], return_inverse=True)
        if len(keys) == 0:  # no reference is so long: a key that no n-gram has
            tables.append((np.array([-1]), np.zeros(1)))
            continue
        holders = np.unique(images[places] * len(keys) + own)  # an image counts once
        tables.append((keys, np.log(count) - np.log(np.bincount(holders % len(keys)))))
        number[places] = own
    return tables
