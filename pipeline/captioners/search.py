"""Find the most probable captions: beam search over all images of a batch at once.

Owns the search and how captions are ranked. Knows a decoder only through the protocol, and of the vocabulary only
its special words.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.captioners.captioner import Captioner, State
from pipeline.language.vocabulary import END, PAD, START, UNKNOWN
from pipeline.settings import Range

NEVER_SAID = (PAD, START, UNKNOWN)


@dataclass(frozen=True)
class Hypothesis:
    """One caption.

    Attributes:
        words: ids, without START and END.
        log_probability: the sum over its words, and END if it finished.
        attention: (len(words), R) float32, the weights behind each word.
        finished: whether it said END; if not, no caption of the beam did within the words allowed.
    """

    words: tuple[int, ...]
    log_probability: float
    attention: NDArray[np.float32]
    finished: bool


@dataclass(frozen=True)
class _Step:
    """What a step leaves for tracing back: (B, beam) each, attention (B, beam, R) of the parents."""

    parents: Tensor
    words: Tensor
    attention: Tensor


@torch.no_grad()
def beam_search(
    captioner: Captioner, regions: Tensor, *, beam: int, length_penalty: float, max_length: int
) -> list[Hypothesis]:
    """The best caption of each image.

    At every step the 2 x beam likeliest continuations of an image's unfinished captions are looked at: those among
    the first `beam` that end are finished, and the first `beam` that do not end go on. An image is done when `beam`
    captions have finished or `max_length` words are said. Finished captions rank by log p / T^length_penalty with T
    counting END (Wu et al. 2016 in its simplest form); when none finished, the likeliest unfinished one is taken.

    Args:
        captioner: in eval mode.
        regions: (B, R, C), on the captioner's device.
        beam: captions kept an image; 1 is greedy search.
        length_penalty: 0 ranks by probability alone and favours short captions, 1 by the mean over words.
        max_length: words said at most.

    Returns:
        One hypothesis an image, in order.
    """
    search = _Search(captioner, regions, beam, length_penalty, max_length)
    while search.advance():
        pass
    return search.results()


class _Search:
    def __init__(
        self, captioner: Captioner, regions: Tensor, beam: int, length_penalty: float, max_length: int
    ) -> None:
        images, device = regions.shape[0], regions.device
        self.captioner, self.beam, self.length_penalty, self.max_length = captioner, beam, length_penalty, max_length
        self.image = torch.arange(images, device=device)  # of those still searched
        self.state: State = captioner.start(regions).select(self.image.repeat_interleave(beam))
        self.words = torch.full((images, beam), START, device=device)
        self.scores = torch.full((images, beam), -torch.inf, device=device)
        self.scores[:, 0] = 0.0  # all captions of an image are alike at first: one stands for them
        self.finished = torch.zeros(images, dtype=torch.long, device=device)
        self.steps: list[_Step] = []
        # Of each image's best finished caption: its rank value, log p, and where to trace it back from.
        self.best = torch.full((images,), -torch.inf, device=device)
        self.best_log = torch.full((images,), -torch.inf, device=device)
        self.best_end = torch.zeros((images, 2), dtype=torch.long, device=device)

    def advance(self) -> bool:
        """One word further; whether there is more to do."""
        time, live = len(self.steps), len(self.image)
        logits, attention, state = self.captioner.step(self.words.flatten(), self.state)
        logits = logits.float()
        logits[:, NEVER_SAID] = -torch.inf
        totals = self.scores[..., None] + torch.log_softmax(logits, -1).unflatten(0, (live, self.beam))
        values, places = totals.flatten(1).topk(2 * self.beam)
        parents, words = places // logits.shape[-1], places % logits.shape[-1]
        self._finish(time, values, parents, words)
        if time == self.max_length:
            return False
        first = torch.argsort((words == END).to(torch.int8), dim=1, stable=True)[:, : self.beam]
        self.scores, parents, self.words = (part.gather(1, first) for part in (values, parents, words))
        self._record(parents, self.words, attention.unflatten(0, (live, self.beam)))
        return self._go_on(state, parents)

    def _finish(self, time: int, values: Tensor, parents: Tensor, words: Tensor) -> None:
        """Take note of the captions that end here, and of each image's best."""
        ends = (words == END) & (torch.arange(2 * self.beam, device=words.device) < self.beam) & values.isfinite()
        ranks = torch.where(ends, values, -torch.inf) / (time + 1) ** self.length_penalty
        rank, place = ranks.max(1)
        better = rank > self.best[self.image]
        images, place = self.image[better], place[better][:, None]
        self.best[images] = rank[better]
        self.best_log[images] = values[better].gather(1, place)[:, 0]
        self.best_end[images, 0] = time
        self.best_end[images, 1] = parents[better].gather(1, place)[:, 0]
        self.finished[self.image] += ends.sum(1)

    def _record(self, parents: Tensor, words: Tensor, attention: Tensor) -> None:
        """Keep a step for all images, those that are done included, so that places stay the same."""
        images = len(self.best)
        step = _Step(
            parents.new_zeros(images, self.beam),
            words.new_zeros(images, self.beam),
            attention.new_zeros(images, self.beam, attention.shape[-1]),
        )
        step.parents[self.image], step.words[self.image], step.attention[self.image] = parents, words, attention
        self.steps.append(step)

    def _go_on(self, state: State, parents: Tensor) -> bool:
        """Follow the parents, and drop images that are done."""
        going = self.finished[self.image] < self.beam
        rows = torch.arange(len(self.image), device=parents.device)[:, None] * self.beam + parents
        self.image, self.scores, self.words = self.image[going], self.scores[going], self.words[going]
        if not len(self.image):
            return False
        self.state = state.select(rows[going].flatten())
        return True

    def results(self) -> list[Hypothesis]:
        """Trace every image's best caption back."""
        last = dict(zip(self.image.tolist(), self.scores[:, 0].tolist(), strict=True))
        steps = [_Step(step.parents.cpu(), step.words.cpu(), step.attention.float().cpu()) for step in self.steps]
        ends, logs = self.best_end.tolist(), self.best_log.tolist()
        found = []
        for image, finished in enumerate((self.best > -torch.inf).tolist()):
            time, column = ends[image] if finished else (len(steps), 0)
            words, attention = _trace(steps[:time], image, column, steps[0].attention.shape[-1])
            found.append(Hypothesis(words, logs[image] if finished else last[image], attention, finished))
        return found


def _trace(steps: list[_Step], image: int, column: int, regions: int) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    words, rows = [], []
    for step in reversed(steps):
        parent = int(step.parents[image, column])
        words.append(int(step.words[image, column]))
        rows.append(step.attention[image, parent].numpy())
        column = parent
    attention = np.stack(rows[::-1]) if rows else np.zeros((0, regions), np.float32)
    return tuple(reversed(words)), attention


@dataclass(frozen=True)
class EvaluateSettings:
    """The section `evaluate`."""

    split: Literal["test", "validation"]
    beam: Annotated[int, Range(1, 100)]
    length_penalty: Annotated[float, Range(0, 5)]
    max_length: Annotated[int, Range(1, 1000)]
    java_scores: bool
    device: str
