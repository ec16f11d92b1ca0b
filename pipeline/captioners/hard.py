"""The hard-attention decoder of Show, Attend and Tell (Xu et al. 2015, section 4.1): one region is seen at each word.

Owns the choice of the region, what REINFORCE makes of it (`own_loss`) and its options. Does not know how it is
trained or searched.

In training the region is drawn from the attention, s ~ Multinoulli(a) (eq. 8-9). No gradient of the cross-entropy
passes the choice; the attention learns from eq. 12, an estimate of the gradient of E[log p(y | s, a)] from one draw:

    d log p(y | s, a) + reward_weight (log p(y | s, a) - b) d log p(s | a) + entropy_weight d H[a].

Where the paper and its code (kelvinxu/arctic-captions, `capgen.py`) differ, or leave something open:

- An image is seen softly with probability 1/2, for all words of all its captions, as the paper has it; the code draws
  once a minibatch. The attention of such an image learns from the cross-entropy alone.
- The reward is a whole caption's log p, as in the paper. b is the moving average (eq. 10, 0.9 and 0.1) of log p a
  *word*, as in the code, and counts once a word: captions of other lengths differ in log p by far more than choices
  do, and what depends on the length alone leaves the gradient's expectation as it is. It starts at a word's log p
  before anything is learnt, -log V, not at 0.
- `reward_weight` 1 is the gradient itself. The code's 1/10 of the mean over words, which it does not divide by the
  minibatch of n captions as it does the cross-entropy, comes to n / 10 T of that: 0.6 for 64 captions of 10 words.
- The gate (section 4.2.1) is of soft attention in the paper; the code's `selector` serves both, and so does it here.
- In a search and in validation the likeliest region is seen, and shown: attention is one-hot.
- Self-critical training draws words and no regions: the likeliest is seen, with dropout as without, and attention
  stays as it was learnt before.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioners.attention import Shared
from pipeline.captioners.captioner import DecoderShape, Output
from pipeline.captioners.looking import Looking
from pipeline.captioners.lstm import lstm_step
from pipeline.captioners.projection import layer_normalised
from pipeline.captioners.rows import Rows
from pipeline.captioners.show_attend import Saw, ShowAttendTell
from pipeline.captioners.soft import SoftOptions
from pipeline.captioners.stepwise import Memory

_SOFT = 0.5  # the share of images that are seen softly in training
_FORGOTTEN = 0.1  # of the baseline, with every batch


@dataclass(frozen=True)
class HardOptions(SoftOptions):
    """`train.decoder_options` of the hard decoder: the soft one's, and two more.

    Attributes:
        reward_weight: lambda_r of eq. 12.
        entropy_weight: lambda_e of eq. 12, 0.002 in the paper's experiments.
    """

    reward_weight: float
    entropy_weight: float


@dataclass(frozen=True)
class Choices:
    """What the captions of B images share.

    Attributes:
        attention: what choices are drawn from.
        regions: (B, R, C), what can be chosen.
        soft: (B,) bool, images that are seen softly; None: none is.
        generator: what choices are drawn from; None: the likeliest region is seen.
    """

    attention: Shared
    regions: Tensor
    soft: Tensor | None
    generator: torch.Generator | None

    @classmethod
    def of(cls, attention: Shared, soft: Tensor | None, generator: torch.Generator | None) -> Self:
        """Form the regions; where they are the cells as they come, nothing is copied."""
        regions = attention.features
        if attention.pooling is not None:
            regions = attention.pooling.to(regions.dtype) @ regions
        if attention.scale is not None:
            regions = layer_normalised(regions)
        return cls(attention, regions, soft, generator)

    @property
    def features(self) -> Tensor:
        return self.attention.features

    def __len__(self) -> int:
        return len(self.attention)

    def select(self, images: Tensor) -> Self:
        """The images (B',) int64, in that order."""
        attention = self.attention.select(images)
        same = self.regions is self.attention.features
        soft = self.soft if self.soft is None else self.soft[images]
        return replace(
            self, attention=attention, regions=attention.features if same else self.regions[images], soft=soft
        )


class Choosing(NamedTuple):
    """How the captions of a batch look."""

    attention: Looking
    choices: Choices
    rows: Rows


class HardCaptioner(ShowAttendTell):
    """The soft decoder's equations, with a region in the place of the expected one."""

    baseline: Tensor

    def __init__(self, shape: DecoderShape, options: HardOptions) -> None:
        super().__init__(shape, options, gates=4, states=2)
        self.reward_weight, self.entropy_weight = options.reward_weight, options.entropy_weight
        self.register_buffer("baseline", torch.tensor(-math.log(shape.vocabulary_size)))

    def begin(self, regions: Tensor, generator: torch.Generator | None) -> tuple[Choices, Memory]:
        shared, (hidden, cell) = super().begin(regions, generator)
        drawing = generator if self.training else None
        soft = None
        if drawing is not None:
            soft = torch.rand(len(regions), generator=drawing, device=regions.device) < _SOFT
        return Choices.of(shared, soft, drawing), (hidden.to(shared.features.dtype), cell)

    def regions(self, shared: Choices, rows: Rows) -> Choosing:
        return Choosing(Looking(shared.attention, rows), shared, rows)

    def see(self, look: Choosing, query: Tensor) -> Saw:
        expected, weights, _ = look.attention(query)
        image, choice = look.rows.image[: len(query)], _chosen(weights.detach(), look.choices.generator)
        regions = look.choices.regions
        context, attention = regions.flatten(0, 1).index_select(0, image * regions.shape[1] + choice), weights
        logs = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        extras = [logs.gather(1, choice[:, None])[:, 0], -(weights * logs).sum(-1)]
        if look.choices.generator is None:
            attention = functional.one_hot(choice, weights.shape[1]).to(weights.dtype)
        if look.choices.soft is not None:
            soft = look.choices.soft[image]
            context = torch.where(soft[:, None], expected, context)
            extras = [extra.masked_fill(soft, 0.0) for extra in extras]
        return Saw(context, attention, dict(zip(("log_choice", "entropy"), extras, strict=True)))

    def remember(self, from_word: Tensor, from_hidden: Tensor, from_context: Tensor, memory: Memory) -> Memory:
        return lstm_step(from_word, from_hidden, from_context, memory[1])

    def moving(self) -> list[Tensor]:
        return [self.baseline]

    def own_loss(self, output: Output, losses: Tensor, lengths: Tensor) -> Tensor:
        """REINFORCE and the entropy (eq. 11-12), a mean over words; takes the losses into the baseline (eq. 10)."""
        spoken = self.spoken(lengths, output.attention.shape[2])
        places = spoken.flatten().nonzero()[:, 0].to(losses.device)
        excess = losses + self.baseline  # of each word: b - log p
        captions = excess.new_zeros(spoken.numel()).index_copy(0, places, excess).view(spoken.shape).sum(-1)
        self.baseline.lerp_(-losses.mean().to(self.baseline.dtype), _FORGOTTEN)
        choices = self.reward_weight * captions[..., None] * output.extras["log_choice"]
        return (choices - self.entropy_weight * output.extras["entropy"]).sum() / len(losses)


def _chosen(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """A region of each (n, R): the likeliest, or drawn; (n,) int64.

    The greatest of weights divided by exponential variates is region r with the probability of weight r; unlike
    `torch.multinomial` this lets what is no number pass, so that training can tell where it went wrong.
    """
    if generator is not None:
        weights = weights / torch.empty_like(weights).exponential_(generator=generator)
    return weights.argmax(-1)
