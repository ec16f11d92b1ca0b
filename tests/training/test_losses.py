"""The loss equals its formulas, word by word."""

import math

import numpy as np
import pytest
import torch

from pipeline.captioners.captioner import Captioner, Output
from pipeline.training.losses import captioning_loss, doubly_stochastic

CAPTIONS = [[[1, 4, 2], [1, 5, 4, 6, 2]], [[1, 6, 6, 2]]]


def example() -> tuple[Output, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(3)
    captions, lengths = np.zeros((2, 2, 6), np.int64), np.zeros((2, 2), np.int64)
    attention = np.zeros((2, 2, 4, 3))
    for image, own in enumerate(CAPTIONS):
        for index, caption in enumerate(own):
            captions[image, index, : len(caption)] = caption
            lengths[image, index] = len(caption)
            attention[image, index, : len(caption) - 1] = generator.dirichlet(np.ones(3), len(caption) - 1)
    logits = generator.standard_normal((9, 7)) * 2
    output = Output(torch.from_numpy(logits), torch.from_numpy(attention))
    return output, torch.from_numpy(captions), torch.from_numpy(lengths)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_cross_entropy_is_the_mean_over_words_of_the_smoothed_target(smoothing: float) -> None:
    output, captions, lengths = example()
    targets = [word for own in CAPTIONS for caption in own for word in caption[1:]]
    expected = []
    for row, word in zip(output.logits.numpy(), targets, strict=True):
        logs = row - math.log(sum(math.exp(value) for value in row))
        wanted = np.full(7, smoothing / 7)
        wanted[word] += 1 - smoothing
        expected.append(-float(wanted @ logs))
    loss = captioning_loss(output, captions, lengths, smoothing)
    assert loss.words.item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert loss.count == 9


def test_the_penalty_is_the_mean_over_captions_and_regions() -> None:
    output, _, lengths = example()
    attention, expected = output.attention.numpy(), []
    for image, own in enumerate(CAPTIONS):
        for index in range(len(own)):
            expected += [(1 - attention[image, index, :, region].sum()) ** 2 for region in range(3)]
    assert doubly_stochastic(output.attention, lengths).item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert len(expected) == 9  # the caption that does not exist has no share


def test_top5_counts_words_among_the_five_likeliest() -> None:
    output, captions, lengths = example()
    targets = [word for own in CAPTIONS for caption in own for word in caption[1:]]
    rows = output.logits.numpy()
    expected = sum(int((row > row[word]).sum() < 5) for row, word in zip(rows, targets, strict=True))
    assert int(captioning_loss(output, captions, lengths, 0.0).top5) == expected
    assert 0 < expected < 9


def test_spoken_marks_every_word_but_the_start() -> None:
    _, _, lengths = example()
    assert Captioner.spoken(lengths, 4).sum(-1).tolist() == [[2, 4], [3, 0]]


def test_the_penalty_of_half_precision_weights_is_summed_in_float32() -> None:
    attention = torch.full((1, 1, 300, 2), 1 / 256, dtype=torch.bfloat16)  # exact, but its sum is not in bfloat16
    penalty = doubly_stochastic(attention, torch.tensor([[301]]))
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx((1 - 300 / 256) ** 2, rel=1e-6)
