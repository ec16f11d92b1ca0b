"""What training makes small: the words' cross-entropy and the doubly stochastic penalty.

Owns both formulas and the accuracy shown beside them. Does not know which decoder spoke.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner, Output
from pipeline.captioners.scores import word_losses


@dataclass(frozen=True)
class Loss:
    """The loss of a batch and what it is made of.

    Attributes:
        words: the mean cross-entropy a word (END is one), in nats, with label smoothing if any.
        penalty: the doubly stochastic penalty, not yet weighted.
        top5: how many words were among the five likeliest.
        count: how many words there were.
        each: (M,) the cross-entropy of each word, in the order of `Output.logits`.
    """

    words: Tensor
    penalty: Tensor
    top5: Tensor
    count: int
    each: Tensor


def captioning_loss(output: Output, captions: Tensor, lengths: Tensor, label_smoothing: float) -> Loss:
    """Compare what a decoder said with the captions it was given.

    Args:
        output: of `Captioner.forward`.
        captions: (B, K, T) int64.
        lengths: (B, K) int64 on the CPU.
        label_smoothing: the share of probability spread evenly over the vocabulary (Szegedy et al. 2016).
    """
    spoken = Captioner.spoken(lengths, output.attention.shape[2])
    targets = captions[:, :, 1 : 1 + spoken.shape[2]].flatten()[_places(spoken, captions.device)]
    losses, likelier = word_losses(output.logits, targets, label_smoothing)
    top5 = (likelier < 5).sum()
    return Loss(losses.mean(), doubly_stochastic(output.attention, lengths), top5, len(targets), losses)


def doubly_stochastic(attention: Tensor, lengths: Tensor) -> Tensor:
    """How far each region is from being looked at once a caption (Xu et al. 2015, eq. 14).

    Args:
        attention: (B, K, T, R), zero where no word is.
        lengths: (B, K) int64; a caption of length 0 does not exist.

    Returns:
        The mean over captions and regions of (1 - sum over words of the weight) squared. The paper sums over the
        regions; the mean keeps the weight's meaning when the grid changes.
    """
    wide = torch.promote_types(attention.dtype, torch.float32)
    apart = (1 - attention.to(wide).sum(2)) ** 2
    return apart.flatten(0, 1)[_places(lengths > 0, attention.device)].mean()


def _places(mask: Tensor, device: torch.device) -> Tensor:
    """Where a mask on the CPU is true; looked for there, so that nobody waits for a GPU."""
    return mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
