"""The second phase: captions are drawn, and those that score better than the image's others are made likelier.

Owns the estimator of the policy gradient. Does not know how a caption is judged (`reward`), nor how a step is made.

Self-critical training (Rennie et al. 2017) with the mean of the other samples as baseline (Luo 2020, "A better variant
of self-critical sequence training", as Kool et al. 2019): K captions c_k of an image are drawn from the decoder itself,
and what is made small is

    - sum over k of (r(c_k) - mean of r(c_j), j != k) x sum over words of log p(word)

whose gradient is, in expectation, K times that of minus the expected reward. It is divided by all words drawn in the
step, as usual: a mean a word, like cross-entropy. END is a word. Where a caption was cut after the words allowed, the
decoder has chosen not to say END there, and log (1 - p(END)) stands in its place: then the probabilities of all that
can be drawn sum to 1. Captions are drawn without dropout; the words that are never said have no probability then, nor
when captions are learnt from. Without `train.self_critical.dropout` what learns is what has drawn, and the gradient is
exact; with it the same captions are learnt from with dropout, and it is not.

Captions are drawn at a temperature, and it is the decoder at that temperature that learns: what is exact stays exact.
Label smoothing leaves a tenth of every word's probability to all words alike, so that at temperature 1 most captions
hold one that nobody would say; the fewer words a caption has the better it scores then, and short captions win.
Greedy search is the same at every temperature.
"""

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner, Output
from pipeline.captioners.sampling import Samples, sample
from pipeline.captioners.words import log_probabilities
from pipeline.language.vocabulary import END, PAD
from pipeline.training.batches import Batch
from pipeline.training.phase import Lesson, Phase, Totals
from pipeline.training.progress import Record
from pipeline.training.reward import CiderReward
from pipeline.training.schedule import Constant, Schedule
from pipeline.training.settings import SelfCriticalSettings
from pipeline.training.validation import MAX_WORDS


class SelfCritical(Phase):
    """Policy gradient on CIDEr-D; the sums are of the loss over words, of rewards, and of captions.

    Args:
        settings: the section `train.self_critical`.
        reward: judges captions of training images.
        max_length: words a caption says at most, as in validation.
    """

    rates = "train.self_critical"

    def __init__(self, settings: SelfCriticalSettings, reward: CiderReward, max_length: int = MAX_WORDS) -> None:
        self.settings, self.epochs, self.learning_rate = settings, settings.epochs, settings.learning_rate
        self.reward, self.max_length = reward, max_length

    def schedule(self, steps: int) -> Schedule:
        return Constant(self.learning_rate)

    def captions_of(self, batch: Batch) -> int:
        return len(batch.rows) * self.settings.samples

    @torch.no_grad()
    def lesson(self, captioner: Captioner, batch: Batch, generator: torch.Generator) -> Lesson:
        found = sample(
            captioner,
            batch.regions,
            samples=self.settings.samples,
            temperature=self.settings.temperature,
            top_k=0,
            top_p=1.0,
            max_length=self.max_length,
            generator=generator,
        )
        rewards = self.reward(batch.rows, found.captions[:, :, 1:], found.lengths - 1)
        return _longest_first(batch, found, rewards, generator)

    def loss(self, captioner: Captioner, lesson: Lesson, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        batch, rewards, advantages = lesson.batch, lesson.rewards, lesson.advantages
        assert rewards is not None and advantages is not None, "every lesson of this phase is judged"
        generator = lesson.generator if self.settings.dropout else None
        # Dropout or not, a decoder sees here what it saw when it drew the words.
        output = captioner.eval()(batch.regions, batch.captions, batch.lengths, generator)
        logs = said_log_probabilities(output, batch.captions, batch.lengths, self.settings.temperature)
        said = (batch.lengths - 1).flatten().to(logs.device, non_blocking=True)
        weights = advantages.flatten().to(logs.dtype).repeat_interleave(said, output_size=len(logs))
        loss = -(weights * logs).sum()
        count = torch.full_like(rewards[0, 0], rewards.numel())
        return loss / counts[0], torch.stack((loss.detach().double(), rewards.sum(), count))

    def record(self, totals: Totals) -> Record:
        return {"train/reward": self._mean(totals)}

    def told(self, totals: Totals) -> str:
        return f"reward {self._mean(totals):.1f}"

    @staticmethod
    def _mean(totals: Totals) -> float:
        """The mean reward x 100, as CIDEr-D is told elsewhere."""
        _, rewards, captions = totals.sums
        return 100 * rewards / captions


def advantages_of(rewards: Tensor) -> Tensor:
    """Rewards (B, K) less the mean of the image's other captions'."""
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / others


def said_log_probabilities(output: Output, captions: Tensor, lengths: Tensor, temperature: float) -> Tensor:
    """Log-probability of each word of captions that were drawn, END among them; of not saying END where one was cut.

    Args:
        output: of `Captioner.forward`.
        captions: (B, K, T) int64, `START w1 .. wn END PAD ..`.
        lengths: (B, K) int64 on the CPU, words with START and END; of a caption that was cut with the PAD after it.
        temperature: scores are divided by it, as they were for drawing.

    Returns:
        (M,) float32 or wider, in the order of `output.logits`.
    """
    spoken = Captioner.spoken(lengths, captions.shape[2] - 1).flatten().nonzero()[:, 0]
    words = captions[:, :, 1:].flatten()[spoken.to(captions.device, non_blocking=True)]
    cut = words == PAD
    logs = log_probabilities(output.logits / temperature).gather(1, torch.where(cut, END, words)[:, None])[:, 0]
    unsaid = torch.log(
        -torch.expm1(torch.where(cut, logs.clamp(max=-1e-6), -1.0))
    )  # -1: any number that has a gradient
    return torch.where(cut, unsaid, logs)


def _longest_first(batch: Batch, found: Samples, rewards: Tensor, generator: torch.Generator) -> Lesson:
    """Samples as a batch, in the order in which finished captions leave `Captioner.forward` soonest."""
    ended = (found.captions == END).any(2)
    lengths = found.lengths + (~ended).long()  # a cut caption's last choice is the PAD behind it
    captions = lengths.argsort(dim=1, descending=True, stable=True)
    longest = lengths.amax(1).argsort(descending=True, stable=True)
    captions = captions[longest]
    own = longest[:, None]
    rows = tuple(batch.rows[place] for place in longest.tolist())
    regions = batch.regions.index_select(0, longest)
    drawn = Batch(rows, regions, found.captions[own, captions], lengths[own, captions].cpu())
    return Lesson(drawn, generator, rewards[own, captions], advantages_of(rewards)[own, captions])
