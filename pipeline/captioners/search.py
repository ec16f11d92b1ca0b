"""Find the most probable captions: beam search over all images of a batch at once.

Owns the search and how captions are ranked, and `find_captions`, which searches as the settings say. Knows a decoder
only through the protocol, and of the vocabulary only its special words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioners.blocking import block_repeats
from pipeline.captioners.captioner import WORTH_LEAVING, Captioner, State
from pipeline.captioners.hypothesis import Hypothesis, Trace, hypotheses
from pipeline.captioners.options import SearchOptions
from pipeline.captioners.sampling import sample_captions
from pipeline.captioners.words import log_probabilities
from pipeline.language.vocabulary import END, START

_CHUNK = 64  # words of which only the likeliest is looked at first


def find_captions(
    captioner: Captioner, regions: Tensor, options: SearchOptions, keys: Sequence[str]
) -> list[Hypothesis]:
    """One caption of each image, found as the settings say.

    Args:
        captioner: in eval mode.
        regions: (B, R, C), on the captioner's device.
        options: checked by `check_search`.
        keys: the SHA-256 of each image's content: with the seed it decides what is drawn when sampling.
    """
    if options.method == "sample":
        return [caption for (caption,) in sample_captions(captioner, regions, options, keys)]
    return beam_search(
        captioner,
        regions,
        beam=options.beam,
        length_penalty=options.length_penalty,
        max_length=options.max_length,
        block_ngrams=options.block_ngrams,
        groups=options.beam_groups,
        diversity=options.diversity,
    )


@torch.no_grad()
def beam_search(
    captioner: Captioner,
    regions: Tensor,
    *,
    beam: int,
    length_penalty: float,
    max_length: int,
    block_ngrams: int = 0,
    groups: int = 1,
    diversity: float = 0.0,
) -> list[Hypothesis]:
    """The best caption of each image.

    At every step the 2 x beam likeliest continuations of an image's unfinished captions are looked at: those among
    the first `beam` that end are finished, and the first `beam` that do not end go on. An image is done when `beam`
    captions have finished or `max_length` words are said. Finished captions rank by log p / T^length_penalty with T
    counting END (Wu et al. 2016 in its simplest form); when none finished, the likeliest unfinished one is taken.

    With several groups (diverse beam search, Vijayakumar et al. 2016, with Hamming diversity) each searches like that
    with its share of the beam. At each word they choose in turn, and a word costs `diversity` in choosing for every
    caption of an earlier group that goes on with it at this step; log p does not hold that cost.

    Args:
        captioner: in eval mode.
        regions: (B, R, C), on the captioner's device.
        beam: captions kept an image; 1 is greedy search.
        length_penalty: 0 ranks by probability alone and favours short captions, 1 by the mean over words.
        max_length: words said at most.
        block_ngrams: n, where no n-gram may occur twice in a caption; 0 is off.
        groups: a divisor of `beam`.
        diversity: of several groups.

    Returns:
        One hypothesis an image, in order.
    """
    search = _Search(captioner, regions, beam, length_penalty, max_length, block_ngrams, groups, diversity)
    while search.advance():
        pass
    return search.results()


class _Search:
    """N of the B images are still in the batch, with W captions each: 1 before the first word, then the beam."""

    def __init__(
        self,
        captioner: Captioner,
        regions: Tensor,
        beam: int,
        length_penalty: float,
        max_length: int,
        block_ngrams: int,
        groups: int,
        diversity: float,
    ) -> None:
        images, device = regions.shape[0], regions.device
        self.captioner, self.length_penalty, self.max_length = captioner, length_penalty, max_length
        self.block_ngrams, self.groups, self.width, self.diversity = block_ngrams, groups, beam // groups, diversity
        self.image = torch.arange(images, device=device)
        self.state: State = captioner.start(regions)
        self.words = torch.full((images, 1), START, device=device)
        self.said = torch.zeros((images, 1, 0), dtype=torch.long, device=device)  # kept where n-grams are blocked
        self.scores = torch.zeros((images, 1), device=device)
        self.finished = torch.zeros((images, groups), dtype=torch.long, device=device)
        self.trace = Trace(images)
        # Of each of the B images' best finished caption: its rank value, log p, and where to trace it back from.
        self.best = torch.full((images,), -torch.inf, device=device)
        self.best_log = torch.full((images,), -torch.inf, device=device)
        self.best_end = torch.zeros((images, 2), dtype=torch.long, device=device)

    def advance(self) -> bool:
        """One word further; whether there is more to do."""
        time, size = len(self.trace.steps), self.words.shape
        logits, attention, state = self.captioner.step(self.words.flatten(), self.state)
        logs = log_probabilities(logits)
        if self.block_ngrams:
            logs = block_repeats(logs, self.said.flatten(0, 1), self.block_ngrams)
        values, parents, words, going = self._choose(logs.unflatten(0, size))
        self._finish(time, values, parents, words)
        if time == self.max_length:
            return False
        self.scores, parents, self.words = (part.gather(2, going).flatten(1) for part in (values, parents, words))
        self.trace.add(self.image, parents, self.words, attention.unflatten(0, size))
        if self.block_ngrams:
            kept = self.said.gather(1, parents[..., None].expand(-1, -1, time))
            self.said = torch.cat((kept, self.words[..., None]), -1)
        return self._go_on(state, parents, size[1])

    def _choose(self, logs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The 2 x width likeliest continuations of each group, best first, and which of them go on.

        Args:
            logs: (N, W, V), of the next word.

        Returns:
            Log p, parent and word, (N, groups, 2 x width), and the places (N, groups, width) of those that go on.
        """
        chosen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        apart = self.groups > 1 and len(self.trace.steps) < self.max_length  # of the last word none go on
        cost = logs.new_zeros(len(logs), logs.shape[-1]) if apart else None
        for group in range(self.groups):
            own = slice(0, 1) if logs.shape[1] == 1 else slice(group * self.width, (group + 1) * self.width)
            guided = logs[:, own] if cost is None else logs[:, own] - cost[:, None]
            values, parents, words = likeliest(self.scores[:, own], guided, 2 * self.width)
            if cost is not None:  # the cost guides the choice; log p stays the decoder's
                values = self.scores[:, own].gather(1, parents) + logs[:, own].flatten(1).gather(
                    1, parents * logs.shape[-1] + words
                )
            going = torch.argsort((words == END).to(torch.int8), dim=1, stable=True)[:, : self.width]
            if cost is not None:
                said = values.gather(1, going).isfinite() * self.diversity
                cost = cost.scatter_add(1, words.gather(1, going), said.to(cost.dtype))
            chosen.append((values, parents + own.start, words, going))
        values, parents, words, going = (torch.stack(part, 1) for part in zip(*chosen, strict=True))
        return values, parents, words, going

    def _finish(self, time: int, values: Tensor, parents: Tensor, words: Tensor) -> None:
        """Take note of the captions that end here, and of each image's best."""
        first = torch.arange(2 * self.width, device=words.device) < self.width
        ends = (words == END) & first & values.isfinite()
        self.finished += ends.sum(2)
        ranks = torch.where(ends, values, -torch.inf).flatten(1) / (time + 1) ** self.length_penalty
        rank, place = ranks.max(1, keepdim=True)
        better = rank[:, 0] > self.best[self.image]
        log, parent = (part.flatten(1).gather(1, place)[:, 0] for part in (values, parents))
        end = torch.stack((torch.full_like(parent, time), parent), 1)
        for kept, new in ((self.best, rank[:, 0]), (self.best_log, log), (self.best_end, end)):
            old = kept[self.image]
            kept.index_copy_(0, self.image, torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old))

    def _go_on(self, state: State, parents: Tensor, captions: int) -> bool:
        """Follow the parents, and let images that are done leave when they are many enough."""
        done = self.finished >= self.width
        self.scores = self.scores.masked_fill(done.repeat_interleave(self.width, 1), -torch.inf)
        # log p only falls: where even the most words could not rank a caption higher than the best, all is said.
        reach = self.scores.amax(1) / (self.max_length + 1) ** self.length_penalty
        best = self.best[self.image]
        over = done.all(1) | ((best > -torch.inf) & (reach <= best))
        count, rows = int(over.sum()), torch.arange(len(over), device=over.device)[:, None] * captions + parents
        if count == len(over):
            return False
        if count >= WORTH_LEAVING * len(over):
            stay = (~over).nonzero()[:, 0]
            self.image, self.scores, self.words, self.said, self.finished, rows = (
                part.index_select(0, stay)
                for part in (self.image, self.scores, self.words, self.said, self.finished, rows)
            )
        self.state = state.select(rows.flatten())
        return True

    def results(self) -> list[Hypothesis]:
        """Trace every image's best caption back; where none finished, the likeliest that did not."""
        finished = self.best > -torch.inf
        place = torch.argsort(self.scores, dim=1, descending=True, stable=True)[:, :1]
        last = torch.zeros_like(self.best).index_copy(0, self.image, self.scores.gather(1, place)[:, 0])
        column = torch.zeros_like(self.best_end[:, 1]).index_copy(0, self.image, place[:, 0])
        lengths = torch.where(finished, self.best_end[:, 0], len(self.trace.steps))
        words, attention = self.trace.back(lengths, torch.where(finished, self.best_end[:, 1], column))
        return hypotheses(words, lengths, torch.where(finished, self.best_log, last), attention, finished)


def likeliest(scores: Tensor, logs: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of all captions of an image: the largest of scores[n, w] + logs[n, w, v].

    Only the best of every 64 words is compared at first: a chunk without one of the `count` best chunk maxima holds
    none of the `count` best words.

    Args:
        scores: (N, W).
        logs: (N, W, V).
        count: how many.

    Returns:
        Values, places in W and words, (N, count) each, best first; -inf where there are fewer.
    """
    _, captions, size = logs.shape
    chunks = size // _CHUNK
    if chunks * captions <= 2 * count:
        totals = (scores[..., None] + logs).flatten(1)
        values, places = totals.topk(min(count, totals.shape[1]))
    else:
        places = _promising(scores, logs, chunks, count)
        totals = scores.gather(1, places // size) + logs.flatten(1).gather(1, places)
        values, best = totals.topk(count)
        places = places.gather(1, best)
    short = count - values.shape[1]
    values, places = functional.pad(values, (0, short), value=-torch.inf), functional.pad(places, (0, short))
    return values, places // size, places % size


def _promising(scores: Tensor, logs: Tensor, chunks: int, count: int) -> Tensor:
    """Where the `count` best can be, as places in W x V: the best chunks, and the words left over behind them."""
    images, captions, size = logs.shape
    device, covered = logs.device, chunks * _CHUNK
    maxima = logs[..., :covered].unflatten(-1, (chunks, _CHUNK)).amax(-1)
    chunk = (scores[..., None] + maxima).flatten(1).topk(count).indices
    start = chunk // chunks * size + chunk % chunks * _CHUNK
    inside = (start[..., None] + torch.arange(_CHUNK, device=device)).flatten(1)
    behind = torch.arange(captions, device=device)[:, None] * size + torch.arange(covered, size, device=device)
    return torch.cat((inside, behind.flatten().expand(images, -1)), 1)
