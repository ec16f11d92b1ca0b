"""Batched sampling equals drawing one caption at a time; chance comes from the seed and the image alone."""

import math

import numpy as np
import pytest
import torch

from pipeline.captioners import sampling
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import SearchOptions
from pipeline.captioners.sampling import draw, keyed_chances, sample, sample_captions
from pipeline.captioners.search import beam_search, find_captions
from tests.captioners.conftest import Make
from tests.captioners.one_by_one import MARKS, repeats, sampled

KEYS = [f"{image:016x}{'0' * 48}" for image in (2**63 + 5, 1, 7, 12, 99)]
OPTIONS = SearchOptions("sample", 5, 0.7, 1, 0.5, 1.0, 0, 1.0, 4, 0, 6)
VARIANTS = [(1.0, 0, 1.0, 0), (0.6, 0, 1.0, 0), (1.7, 3, 1.0, 0), (1.0, 0, 0.7, 0), (1.2, 5, 0.8, 0), (1.0, 0, 1.0, 2)]


def options(variant: tuple[float, int, float, int], seed: int = 4) -> SearchOptions:
    temperature, top_k, top_p, block = variant
    return SearchOptions("sample", 5, 0.7, 1, 0.5, temperature, top_k, top_p, seed, block, 6)


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(5, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def said(found: list[Hypothesis]) -> list[tuple[int, ...]]:
    return [one.words for one in found]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [3, 8])
def test_sampled_captions_equal_those_drawn_one_by_one(
    make: Make, variant: tuple[float, int, float, int], seed: int
) -> None:
    captioner, plain = make(seed=seed)
    found = find_captions(captioner.eval(), images(), options(variant), KEYS)
    for hypothesis, regions, key in zip(found, images(), KEYS, strict=True):
        expected = sampled(plain, regions.numpy(), keyed_chances(4, key, 7).tolist(), *variant)
        assert (hypothesis.words, hypothesis.finished) == (expected.words, expected.finished)
        assert hypothesis.log_probability == pytest.approx(expected.log, rel=1e-5)
        np.testing.assert_allclose(hypothesis.attention, expected.attention, rtol=1e-5, atol=1e-7)
        assert not repeats(hypothesis.words, variant[3])


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_sample_does_not_depend_on_the_images_beside_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, at_once: int, share: float
) -> None:
    captioner, _ = make()
    together = find_captions(captioner, images(), OPTIONS, KEYS)
    monkeypatch.setattr(sampling, "WORTH_LEAVING", share)
    apart: list[Hypothesis] = []
    for start in range(0, 5, at_once):
        apart += find_captions(captioner, images()[start : start + at_once], OPTIONS, KEYS[start : start + at_once])
    assert said(apart) == said(together)
    assert len({one.finished for one in together}) == 2, "some end and some do not"


def test_several_captions_of_an_image_are_each_drawn_as_if_alone_and_begin_with_the_one(make: Make) -> None:
    captioner, plain = make()
    several = sample_captions(captioner, images(), OPTIONS, KEYS, samples=3)
    assert [own[0].words for own in several] == said(find_captions(captioner, images(), OPTIONS, KEYS))
    assert len({own[place].words for own in several for place in range(3)}) > 5
    for own, regions, key in zip(several, images(), KEYS, strict=True):
        chances = keyed_chances(4, key, 21).view(3, 7).tolist()
        for hypothesis, numbers in zip(own, chances, strict=True):
            expected = sampled(plain, regions.numpy(), numbers, *VARIANTS[0])
            assert (hypothesis.words, hypothesis.finished) == (expected.words, expected.finished)
            assert hypothesis.log_probability == pytest.approx(expected.log, rel=1e-5)
            np.testing.assert_allclose(hypothesis.attention, expected.attention, rtol=1e-5, atol=1e-7)


def test_another_seed_or_another_image_draws_another_caption(make: Make) -> None:
    captioner, _ = make()
    first = said(find_captions(captioner, images(), OPTIONS, KEYS))
    assert said(find_captions(captioner, images(), options((1.0, 0, 1.0, 0), seed=5), KEYS)) != first
    assert said(find_captions(captioner, images(), OPTIONS, KEYS[::-1])) != first
    assert said(find_captions(captioner, images(), OPTIONS, KEYS)) == first


@pytest.mark.parametrize("variant", [(1.0, 1, 1.0, 0), (1.0, 0, 1e-6, 0), (0.01, 0, 1.0, 0)])
def test_with_one_word_to_draw_from_the_caption_is_the_greedy_one(
    make: Make, variant: tuple[float, int, float, int]
) -> None:
    captioner, _ = make()
    greedy = beam_search(captioner, images(), beam=1, length_penalty=0.0, max_length=6)
    assert said(find_captions(captioner, images(), options(variant), KEYS)) == said(greedy)


def test_chances_are_those_of_numpys_philox() -> None:
    own = np.random.Generator(np.random.Philox(key=np.array([4, 2**63 + 5], dtype=np.uint64))).random(9)
    assert keyed_chances(4, KEYS[0], 9).tolist() == own.tolist()


def test_words_are_drawn_as_often_as_they_are_likely() -> None:
    shares = torch.tensor([0.0, 0.0, 0.5, 0.0, 0.3, 0.15, 0.05])
    count = 20_000
    chances = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logs = shares.log().expand(count, -1)
    for temperature, top_k, top_p, expected in (
        (1.0, 0, 1.0, shares),
        (2.0, 0, 1.0, shares.sqrt() / shares.sqrt().sum()),
        (1.0, 2, 1.0, torch.tensor([0, 0, 0.625, 0, 0.375, 0, 0])),
        (1.0, 0, 0.81, torch.tensor([0, 0, 0.5, 0, 0.3, 0.15, 0]) / 0.95),
        (1.0, 3, 0.8, torch.tensor([0, 0, 0.625, 0, 0.375, 0, 0])),  # of three, two reach 0.8
    ):
        drawn = draw(logs, chances, temperature, top_k, top_p).bincount(minlength=7) / count
        torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)
        assert not (drawn * (expected == 0)).any()


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_the_largest_chance_draws_no_word_without_a_chance(top_p: float) -> None:
    logs = torch.tensor([[-math.inf, 0.0, 0.0, 0.0, -math.inf, -math.inf]])
    word = int(draw(logs, torch.tensor([1 - 2.0**-53], dtype=torch.float64), 1.0, 0, top_p))
    assert word in (1, 2, 3)
    assert int(draw(logs, torch.zeros(1, dtype=torch.float64), 1.0, 0, top_p)) in (1, 2, 3)


def test_several_samples_of_an_image_are_as_forward_takes_them(make: Make) -> None:
    captioner, plain = make()
    found = sample(
        captioner,
        images(),
        samples=3,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=6,
        generator=torch.Generator().manual_seed(2),
    )
    chances = torch.rand((5, 3, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for image in range(5):
        for index in range(3):
            expected = sampled(plain, images()[image].numpy(), chances[image, index].tolist())
            words = [1, *expected.words, *([2] if expected.finished else [])]
            padded = words + [0] * (found.captions.shape[2] - len(words))
            assert found.captions[image, index].tolist() == padded
            assert int(found.lengths[image, index]) == len(words)
            own = found.attention[image, index, : len(expected.words)].numpy()
            np.testing.assert_allclose(own, expected.attention, rtol=1e-9)
    assert len({tuple(row) for row in found.captions.flatten(0, 1).tolist()}) > 10


def test_sampled_log_probabilities_are_those_of_the_captions_given(make: Make) -> None:
    captioner, _ = make()
    found = sample(
        captioner,
        images(),
        samples=3,
        temperature=1.4,
        top_k=6,
        top_p=0.9,
        max_length=6,
        generator=torch.Generator().manual_seed(5),
    )
    output = captioner(images(), found.captions, found.lengths, None)
    spoken = captioner.spoken(found.lengths, found.captions.shape[2] - 1)
    logits = output.logits.index_fill(1, torch.tensor(MARKS), -math.inf)
    given = torch.log_softmax(logits, 1).gather(1, found.captions[:, :, 1:][spoken][:, None])[:, 0]
    torch.testing.assert_close(found.log_probabilities[spoken].double(), given, rtol=1e-5, atol=1e-6)
    assert not found.log_probabilities[~spoken].any()
