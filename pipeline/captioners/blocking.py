"""No n-gram twice: which words an unfinished caption may not say next.

Owns that rule. Does not know what is done with what is left.
"""

import torch
from torch import Tensor

from pipeline.language.vocabulary import PAD


def block_repeats(logs: Tensor, said: Tensor, size: int) -> Tensor:
    """Make every word impossible that would complete an n-gram for the second time.

    Nothing else changes: what is left keeps its log-probability and no longer sums to 1.

    Args:
        logs: (N, V) float, of the next word; PAD, which is never said, must be -inf already.
        said: (N, T) int64, the words of each caption so far, START left out.
        size: n; 1 says no word twice.

    Returns:
        (N, V).
    """
    if said.shape[1] < size:
        return logs
    ngrams = said.unfold(1, size, 1)  # (N, T - n + 1, n)
    newest = said[:, said.shape[1] - size + 1 :]
    again = (ngrams[..., :-1] == newest[:, None]).all(-1)
    return logs.scatter(1, torch.where(again, ngrams[..., -1], PAD), -torch.inf)
