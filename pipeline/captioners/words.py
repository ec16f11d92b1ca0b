"""What a decoder's scores say of the next word.

Owns which words are never said. Does not know what is searched for.
"""

import torch
from torch import Tensor

from pipeline.language.vocabulary import PAD, START, UNKNOWN

NEVER_SAID = (PAD, START, UNKNOWN)


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of the words that may be said, float32: the others are -inf before the softmax.

    Args:
        logits: (N, V); spent.
    """
    logits = logits.float()
    for word in NEVER_SAID:  # one by one: a list of places would be copied to the device at every word
        logits[:, word] = -torch.inf
    return torch.log_softmax(logits, -1)
