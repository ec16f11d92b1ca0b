"""Several captioners that say each word together.

Owns the mean of what they say. Does not know which captioners belong together, nor where they come from.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.captioners.captioner import Captioner, Output, State


class EnsembleState(NamedTuple):
    """The states of all members, of the same N captions."""

    members: tuple[State, ...]

    def select(self, rows: Tensor) -> Self:
        return self._replace(members=tuple(state.select(rows) for state in self.members))


class Ensemble(Captioner):
    """The mean of the members' probabilities, over the whole vocabulary.

    Each member is normalised over all words, those included that are never said (`words.py` takes them out of the
    mean afterwards, as of any captioner's scores): so `step` and `forward` speak of the same distribution, and a
    member that is at a loss, whose likeliest word is `<unk>`, has less of a say. The mean is taken of probabilities,
    not of scores, in float32 or wider, and without leaving logarithms. One member alone is passed through untouched.

    Attention is the mean of the members'. Where their grids differ, it is seen on one of them: a region's weight is
    spread over the regions of that grid which it covers.

    Args:
        members: one or more, of one vocabulary, that take the same cells; each has its own pooling already.
        onto: for each member how its regions are spread over those of the ensemble, (R_member, R) with rows of sum 1;
            None where they are the same.
    """

    def __init__(self, members: Sequence[Captioner], onto: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.onto = tuple(onto)

    def look_through(self, pooling: Tensor | None) -> Self:
        for member in self._members():
            member.look_through(pooling)
        return self

    def start(self, regions: Tensor) -> EnsembleState:
        return EnsembleState(tuple(member.start(regions) for member in self._members()))

    @torch.no_grad()
    def step(self, words: Tensor, state: State) -> tuple[Tensor, Tensor, EnsembleState]:
        assert isinstance(state, EnsembleState)
        steps = [member.step(words, own) for member, own in zip(self._members(), state.members, strict=True)]
        logits, attention, states = zip(*steps, strict=True)
        return mean_scores(logits), self._seen(attention), EnsembleState(states)

    @torch.no_grad()
    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        """Score given captions, without gradients: members are trained each by itself."""
        said = [member(regions, captions, lengths, generator) for member in self._members()]
        return Output(mean_scores([one.logits for one in said]), self._seen([one.attention for one in said]))

    def _members(self) -> list[Captioner]:
        return list(self.members)  # type: ignore[arg-type]  # ModuleList is not generic

    def _seen(self, attention: Sequence[Tensor]) -> Tensor:
        parts = [own if way is None else own @ way.to(own) for own, way in zip(attention, self.onto, strict=True)]
        return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)


def mean_scores(logits: Iterable[Tensor]) -> Tensor:
    """The logarithm of the mean of softmaxes: (N, V) each, float32 or wider; a single one comes back as it is."""
    first, *others = logits
    if not others:
        return first
    total = _normalised(first)
    for own in others:
        torch.logaddexp(total, _normalised(own), out=total)
    return total.sub_(math.log(1 + len(others)))


def _normalised(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
