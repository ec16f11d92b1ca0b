"""Additive attention's energy and gradients: fused, beside plain autograd, in one run.

python -m bench.attention [--json]
"""

import torch
from torch import Tensor

from bench.machine import seconds, show, wants_json
from pipeline.captioners.attention import additive_energy, compiler_works

IMAGES, CAPTIONS, REGIONS, SIZE = 32, 5, 196, 512


def plain(keys: Tensor, queries: Tensor, score: Tensor) -> Tensor:
    """The formula as it is usually written; autograd keeps the (B, K, R, A) sum."""
    return torch.relu(keys[:, None] + queries[:, :, None]) @ score


def main() -> None:
    as_json = wants_json(str(__doc__))
    torch.manual_seed(0)
    keys, queries, score = (
        torch.randn(size).requires_grad_() for size in ((IMAGES, REGIONS, SIZE), (IMAGES, CAPTIONS, SIZE), (SIZE,))
    )

    def fused_step() -> None:
        additive_energy(keys, queries, score, "relu").sum().backward()

    def plain_step() -> None:
        plain(keys, queries, score).sum().backward()

    if not compiler_works("cpu"):
        print("No C++ compiler works here: both sides are plain torch.")
    ours, theirs = seconds(fused_step, 10), seconds(plain_step, 5)
    rows = [("fused, forward and backward", 1000 * ours, "ms a word"), ("plain autograd", 1000 * theirs, "ms a word")]
    show(rows, {"ratio_plain": theirs / ours}, as_json)


if __name__ == "__main__":
    main()
