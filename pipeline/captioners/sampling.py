"""Draw captions from a decoder instead of searching for the best: with temperature, top-k and nucleus.

Owns how a word is drawn and where chance comes from. Knows a decoder only through the protocol.

Every word is drawn by inverting the distribution at one number in [0, 1). Those numbers are given from outside, so
that a caption depends on its own numbers alone, never on the images beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.captioners.blocking import block_repeats
from pipeline.captioners.captioner import WORTH_LEAVING, Captioner, State
from pipeline.captioners.hypothesis import Hypothesis, hypotheses
from pipeline.captioners.options import SearchOptions
from pipeline.captioners.words import log_probabilities
from pipeline.language.vocabulary import END, PAD, START


@dataclass(frozen=True)
class Samples:
    """K captions of each of B images.

    Attributes:
        captions: (B, K, T) int64, `START w1 .. wn END PAD ..`, as `Captioner.forward` takes them; a caption that did
            not end within the words allowed has no END.
        lengths: (B, K) int64, words with START and END; on the captioner's device (forward wants them on the CPU).
        log_probabilities: (B, K, T - 1) float32, of each word after START under the decoder itself, at temperature 1
            and of all words; 0 where no word is.
        attention: (B, K, T - 1, R), the weights behind each word.
    """

    captions: Tensor
    lengths: Tensor
    log_probabilities: Tensor
    attention: Tensor


def sample(
    captioner: Captioner,
    regions: Tensor,
    *,
    samples: int,
    temperature: float,
    top_k: int,
    top_p: float,
    max_length: int,
    generator: torch.Generator,
) -> Samples:
    """Draw several captions of each image; for gradients give them to `Captioner.forward`.

    Args:
        captioner: asked word by word, without dropout.
        regions: (B, R, C), on the captioner's device.
        samples: K captions an image.
        temperature: logits are divided by it.
        top_k: of the likeliest words only; 0 is all (Fan et al. 2018).
        top_p: of the fewest words only whose probabilities reach this sum; 1 is all (Holtzman et al. 2020). With
            `top_k`, of those.
        max_length: words said at most.
        generator: on the regions' device.
    """
    size = (len(regions), samples, max_length + 1)
    chances = torch.rand(size, generator=generator, device=regions.device, dtype=torch.float64)
    return _Sampling(captioner, regions, chances, temperature, top_k, top_p, 0).run()


@torch.no_grad()
def sample_captions(
    captioner: Captioner, regions: Tensor, options: SearchOptions, keys: Sequence[str], samples: int = 1
) -> list[list[Hypothesis]]:
    """Some captions of each image, the same wherever and beside whatever the image is captioned.

    Args:
        captioner: in eval mode.
        regions: (B, R, C), on the captioner's device.
        options: temperature, top_k, top_p, seed, block_ngrams and max_length count.
        keys: the SHA-256 of each image's content.
        samples: captions an image; asked for more, the first of them stay what they were.
    """
    steps = options.max_length + 1
    chances = torch.stack([keyed_chances(options.seed, key, samples * steps).view(samples, steps) for key in keys])
    rules = options.temperature, options.top_k, options.top_p, options.block_ngrams
    found = _Sampling(captioner, regions, chances.to(regions.device), *rules).run()
    captions, lengths = found.captions.flatten(0, 1), found.lengths.flatten()
    ended = captions.eq(END).any(1)
    logs = found.log_probabilities.flatten(0, 1).sum(1)
    drawn = hypotheses(captions[:, 1:], lengths - 1 - ended.long(), logs, found.attention.flatten(0, 1), ended)
    return [drawn[start : start + samples] for start in range(0, len(drawn), samples)]


def keyed_chances(seed: int, key: str, count: int) -> Tensor:
    """Numbers in [0, 1) that depend on a seed and an image alone, (count,) float64.

    The bits are those of the counter-based generator Philox4x64-10 (Salmon et al. 2011).

    Args:
        seed: below 2^64.
        key: hexadecimal, at least 16 digits, of which the first 16 count.
        count: how many.
    """
    bits = np.random.Philox(key=np.array([seed, int(key[:16], 16)], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


def draw(logs: Tensor, chances: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw one word of each row by inverting the distribution that the options leave.

    Args:
        logs: (N, V) float32, -inf where a word may not be said.
        chances: (N,) in [0, 1).
        temperature: logits are divided by it.
        top_k: 0 is all.
        top_p: 1 is all.

    Returns:
        (N,) int64.
    """
    words: Tensor | None = None
    if top_k or top_p < 1:  # likeliest first, which both need
        logs, words = logs.topk(min(top_k or logs.shape[1], logs.shape[1]))
    share = torch.softmax(logs / temperature, -1)
    if top_p < 1:
        share = share * (share.cumsum(-1) - share < top_p)  # the first word stays whatever top_p is
    total = share.cumsum(-1)
    end = total[:, -1:]
    # Rounding may not lift the mark to the end, where words without a chance would be met.
    mark = torch.minimum(chances[:, None].to(end.dtype) * end, torch.nextafter(end, torch.zeros_like(end)))
    place = torch.searchsorted(total, mark, right=True)
    return place[:, 0] if words is None else words.gather(1, place)[:, 0]


class _Sampling:
    """N of the B images are still in the batch, with K captions each, 1 before the first word."""

    def __init__(
        self,
        captioner: Captioner,
        regions: Tensor,
        chances: Tensor,
        temperature: float,
        top_k: int,
        top_p: float,
        block_ngrams: int,
    ) -> None:
        self.captioner, self.chances, self.block_ngrams = captioner, chances, block_ngrams
        self.rules = (temperature, top_k, top_p)
        images, samples, steps = chances.shape
        self.image = torch.arange(images, device=regions.device)
        self.state: State = captioner.start(regions)
        self.words = torch.full((images, samples), START, device=regions.device)
        self.captions = torch.full((images, samples, steps + 1), PAD, device=regions.device)
        self.captions[..., 0] = START
        self.logs: list[Tensor] = []
        self.attention: list[Tensor] = []

    def run(self) -> Samples:
        while self._advance():
            pass
        steps = len(self.logs)
        captions = self.captions[..., : steps + 1]
        lengths = (captions != PAD).sum(-1)
        return Samples(captions, lengths, torch.stack(self.logs, -1), torch.stack(self.attention, 2))

    def _advance(self) -> bool:
        """One word further; whether there is more to do."""
        time, size = len(self.logs), self.words.shape
        asked = self.words[:, :1] if time == 0 else self.words  # an image's captions are alike at first
        logits, attention, state = self.captioner.step(asked.flatten(), self.state)
        own = log_probabilities(logits).unflatten(0, asked.shape).expand(*size, -1).flatten(0, 1)
        words = self._draw(own.detach(), time)
        going = (self.words != END) & (self.words != PAD)
        if time == self.chances.shape[2] - 1:  # no word more, but a caption may end here
            going = going & (words == END)
        self.words = torch.where(going, words, PAD)
        logs = own.gather(1, words.flatten()[:, None]).view(size)
        self._keep(torch.where(going, logs, 0.0), attention.detach().unflatten(0, asked.shape), time)
        if time == self.chances.shape[2] - 1:
            return False
        return self._go_on(state, asked.shape[1])

    def _draw(self, logs: Tensor, time: int) -> Tensor:
        """A word for each of the N x K captions; of those that have ended it does not count."""
        if self.block_ngrams:
            logs = block_repeats(logs, self.captions[self.image, :, 1 : time + 1].flatten(0, 1), self.block_ngrams)
        chances = self.chances[self.image, :, time]
        return draw(logs, chances.flatten(), *self.rules).view(chances.shape)

    def _keep(self, logs: Tensor, attention: Tensor, time: int) -> None:
        """Put a step's words, log-probabilities and attention where their images are."""
        images, samples = self.captions.shape[:2]
        attention = attention.expand(-1, samples, -1)
        self.captions[self.image, :, time + 1] = self.words
        self.logs.append(logs.new_zeros(images, samples).index_copy(0, self.image, logs))
        whole = attention.new_zeros(images, *attention.shape[1:])
        self.attention.append(whole.index_copy(0, self.image, attention))

    def _go_on(self, state: State, captions: int) -> bool:
        """Let images whose captions have all ended leave when they are many enough."""
        over = ((self.words == END) | (self.words == PAD)).all(1)
        count, samples = int(over.sum()), self.words.shape[1]
        if count == len(over):
            return False
        stay = torch.arange(len(over), device=over.device)
        leaving = count >= WORTH_LEAVING * len(over)
        if leaving:
            stay = (~over).nonzero()[:, 0]
            self.image, self.words = self.image.index_select(0, stay), self.words.index_select(0, stay)
        if leaving or captions != samples:
            columns = torch.arange(samples, device=over.device) % captions
            state = state.select((stay[:, None] * captions + columns).flatten())
        self.state = state
        return True
