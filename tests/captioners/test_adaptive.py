"""The sentinel of adaptive attention."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners.embedded import EmbeddedAttention
from tests.captioners.reference_adaptive import PlainAdaptive
from tests.captioners.test_decoders import Captions, Case, Padded

CASE = Case("adaptive", {"activation": "tanh", "normalise": True})


def test_the_sentinels_share_and_that_of_the_regions_are_one_softmax(
    regions: Tensor, captions: Captions, padded: Padded
) -> None:
    plain = CASE.plain()
    assert isinstance(plain, PlainAdaptive)
    output = CASE.fast()(regions, *padded, None)
    sentinel, attention = (value.detach().numpy() for value in (output.extras["sentinel"], output.attention))
    assert sentinel.shape == (3, 3, 7)
    for image, own in enumerate(captions):
        seen = plain.regions(regions[image].numpy())
        for index, caption in enumerate(own):
            hidden, cell, whole = plain.initial(seen)
            for time, word in enumerate(caption[:-1]):
                _, expected, hidden, cell, beta = plain.said(word, seen, hidden, cell, whole)
                np.testing.assert_allclose(sentinel[image, index, time], beta, rtol=1e-9)
                shares = attention[image, index, time] * (1 - sentinel[image, index, time])
                np.testing.assert_allclose(shares, expected[:-1], rtol=1e-9)
            assert not sentinel[image, index, len(caption) - 1 :].any()


def test_a_search_shows_how_much_a_word_looked_at_all(regions: Tensor) -> None:
    (plain, captioner), words = (CASE.plain(), CASE.fast()), [1, 5, 9]
    assert isinstance(plain, PlainAdaptive)
    _, attention, _ = captioner.step(torch.tensor(words), captioner.start(regions))
    for own, word, shown in zip(regions.numpy(), words, attention.numpy(), strict=True):
        seen = plain.regions(own)
        _, shares, _, _, beta = plain.said(word, seen, *plain.initial(seen))
        np.testing.assert_allclose(shown, shares[:-1], rtol=1e-9)
        assert shown.sum() == pytest.approx(1 - beta)
        assert 0.001 < beta < 0.999


def test_gradients_reach_the_sentinels_share(regions: Tensor, padded: Padded) -> None:
    """Also those that only a loss of the share itself would make."""
    captioner = CASE.fast()
    assert isinstance(captioner.attention, EmbeddedAttention)
    leaf = captioner.attention.additive.score
    direction = torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def share() -> Tensor:
        sentinel: Tensor = captioner(regions, *padded, None).extras["sentinel"]
        return sentinel.square().sum()

    share().backward()
    assert leaf.grad is not None
    found = float((leaf.grad * direction).sum())
    slopes = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            leaf.add_(step * direction)
            slopes.append(share().item())
            leaf.sub_(step * direction)
    np.testing.assert_allclose(found, (slopes[0] - slopes[1]) / 2e-5, rtol=1e-6)
