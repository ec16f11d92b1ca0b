"""The one protocol that every decoder follows; nothing else about a decoder is known elsewhere.

Owns `Captioner`, its `State`, its `Output` and the sizes a decoder is built from. Does not know how captions are
searched, trained or scored, nor where regions come from.

Shapes: B images, K captions an image, T words, R regions (rows x columns, row-major), C channels, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Protocol, Self

import torch
from torch import Tensor, nn

from pipeline.settings import Range

# Images whose captions are done stay in a batch until they are this share of it: `State.select` copies all that stay.
WORTH_LEAVING = 1 / 4

Size = Annotated[int, Range(1)]


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that every decoder shares.

    Attributes:
        vocabulary_size: V, special words included.
        channels: C of the regions.
        embedding_size: E of a word.
        attention_size: A, where keys and queries are compared.
        hidden_size: H of the state.
        dropout: the share of values dropped in training.
    """

    vocabulary_size: Size
    channels: Size
    embedding_size: Size
    attention_size: Size
    hidden_size: Size
    dropout: Annotated[float, Range(0, 1, open_ended=True)]


class State(Protocol):
    """What a decoder remembers between two words of N unfinished captions."""

    def select(self, rows: Tensor) -> Self:
        """The state of the captions `rows`, (M,) int64, in that order; a caption may be taken more than once."""
        ...


@dataclass(frozen=True)
class Output:
    """What a decoder says of given captions.

    Attributes:
        logits: (M, V), a row for each of the M words that exist (END is one, START is not), ordered by image,
            caption, word: the order of `captions[:, :, 1:][Captioner.spoken(lengths, T - 1)]`.
        attention: (B, K, T' - 1, R), the weights behind each word, T' the longest length given; they sum to 1 over R,
            and are 0 where no word is.
        extras: what only some decoders have, such as a sentinel's weight (B, K, T' - 1).
    """

    logits: Tensor
    attention: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Captioner(nn.Module, ABC):
    """A decoder: regions and the words so far in, scores of the next word and attention out.

    A cache may have other cells than the decoder has regions (8 x 8 seen as 14 x 14). The decoder is given the cells,
    and pools inside its arithmetic: projections of pooled regions are P (U f), contexts (a P) f, which is exact and
    leaves the greater part of the products to the fewer cells.
    """

    pooling: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pooling", None, persistent=False)

    def look_through(self, pooling: Tensor | None) -> Self:
        """See cells as regions: (R, N) float32, each row summing to 1; None where cells are regions."""
        self.pooling = pooling
        return self

    @abstractmethod
    def start(self, regions: Tensor) -> State:
        """The state before the first word.

        Args:
            regions: (N, R, C) float; cells, if the decoder looks through a pooling.
        """

    @abstractmethod
    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One word further; without gradients, which `forward` has.

        Args:
            words: (N,) int64, the word just said.
            state: of the same N captions.

        Returns:
            Logits (N, V), attention (N, R) and the next state. Here attention is to be shown: it sums to the share of
            the word that comes from looking, which is 1 unless a decoder can also not look.
        """

    @abstractmethod
    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        """Score given captions (teacher forcing).

        Any order of images and captions is right; finished captions are dropped soonest when images and, within an
        image, captions are sorted by length, longest first.

        Args:
            regions: (B, R, C) float; cells, if the decoder looks through a pooling. Gradients reach them if they ask
                for any.
            captions: (B, K, T) int64, `START w1 .. wn END PAD ..`.
            lengths: (B, K) int64 on the CPU, words with START and END; 0 where an image has fewer than K captions.
            generator: the source of dropout, on the regions' device; None switches dropout off. In training mode
                (`self.training`) it is also the source of what a decoder draws beside words; in eval mode nothing is
                drawn, and a decoder sees what it sees in a search.
        """

    def own_loss(self, output: Output, losses: Tensor, lengths: Tensor) -> Tensor | None:
        """What this decoder alone adds to the mean cross-entropy a word, for training; None: nothing.

        Args:
            output: of `forward`.
            losses: (M,) cross-entropy of each word, in nats, smoothed as the loss is, without gradients, in the
                order of `output.logits`.
            lengths: (B, K) int64 on the CPU, as `forward` was given.
        """
        return None

    def moving(self) -> list[Tensor]:
        """Buffers that `own_loss` moves; processes that share a training take their mean after every step."""
        return []

    def slow_parameters(self) -> list[nn.Parameter]:
        """Weights that learn at a rate of their own: those of a trained tail."""
        return []

    @staticmethod
    def spoken(lengths: Tensor, steps: int) -> Tensor:
        """Which steps say a word: (B, K, steps) bool."""
        return torch.arange(steps) < lengths[:, :, None] - 1


def dropped(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout from a generator, so that a step's masks depend on its seed alone.

    Sixteen bits decide on a value, and four values share a number drawn: the share is exact to 2^-16.
    """
    if generator is None or share == 0:
        return values
    drawn = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=generator)
    kept = drawn.view(torch.int16)[: values.numel()].view_as(values) >= round(share * 2**16) - 2**15
    return values * (kept * (1 / (1 - share))).to(values.dtype)


def regrouped(rows: Tensor, captions: int) -> tuple[Tensor, int]:
    """Which images a selection of captions needs, and how many captions of each.

    A state keeps what an image's captions share (regions, keys) once an image. Search selects the same number of
    captions of every image that goes on, in order, so that this stays possible; any other selection gets an image of
    its own for each caption.

    Args:
        rows: (M,) int64, captions to take; caption i is of image i // captions.
        captions: K so far.

    Returns:
        The images to take, (B',) int64, and K', so that M = B' x K'.
    """
    wanted, counts = torch.unique_consecutive(rows // captions, return_counts=True)
    if len(wanted) and bool((counts == counts[0]).all()):
        return wanted, int(counts[0])
    return rows // captions, 1
