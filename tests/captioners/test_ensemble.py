"""An ensemble equals the mean of its plain members' probabilities, word by word, in loops and float64."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.ensemble import Ensemble, mean_scores
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import SearchOptions
from pipeline.captioners.sampling import keyed_chances
from pipeline.captioners.search import beam_search, find_captions
from pipeline.features.grid import pooling
from tests.captioners.conftest import Make
from tests.captioners.one_by_one import Found, Plain, sampled, search
from tests.captioners.reference import Array

Memory = tuple[Array, ...]
SEEDS = (3, 8, 21)
CELLS, COARSE = (3, 4), (2, 2)


class PlainEnsemble:
    """Members beside each other; each remembers its own, and looks through a pooling of its own."""

    def __init__(self, members: Sequence[Plain], poolings: Sequence[Array | None]) -> None:
        self.members, self.poolings = members, poolings

    def regions(self, regions: Array) -> Array:
        return regions

    def seen(self, number: int, cells: Array) -> Array:
        matrix = self.poolings[number]
        return self.members[number].regions(cells if matrix is None else matrix @ cells)

    def initial(self, regions: Array) -> tuple[Memory, ...]:
        return tuple(member.initial(self.seen(number, regions)) for number, member in enumerate(self.members))

    def step(self, word: int, cells: Array, *memories: Memory) -> tuple[Array, Array, *tuple[Memory, ...]]:
        chances, weights, after = np.zeros(()), np.zeros(len(cells)), list[Memory]()
        for number, (member, memory) in enumerate(zip(self.members, memories, strict=True)):
            logits, own, *later = member.step(word, self.seen(number, cells), *memory)
            exponentials = [math.exp(value - max(logits)) for value in logits]
            chances = chances + np.array([value / sum(exponentials) for value in exponentials])
            matrix = self.poolings[number]
            weights += own if matrix is None else own @ matrix  # a region's weight, spread over its cells
            after.append(tuple(later))
        return np.log(chances / len(self.members)), weights / len(self.members), *after


def both(
    make: Make, seeds: Sequence[int] = SEEDS, pooled: frozenset[int] = frozenset()
) -> tuple[Captioner, PlainEnsemble]:
    """An ensemble whose members of the seeds `pooled` see the cells coarser than they are."""
    matrix = pooling(CELLS, COARSE)
    assert matrix is not None
    made = [make(seed=seed, activation="tanh" if seed == 8 else "relu") for seed in seeds]
    ways = [torch.from_numpy(matrix) if seed in pooled else None for seed in seeds]
    members = [captioner.eval().look_through(way) for (captioner, _), way in zip(made, ways, strict=True)]
    plain = PlainEnsemble([plain for _, plain in made], [None if way is None else matrix for way in ways])
    return Ensemble(members, ways).eval(), plain


def cells(images: int = 4) -> Tensor:
    size = (images, CELLS[0] * CELLS[1], 7)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(images))


def options(**changes: object) -> SearchOptions:
    plain = {
        "method": "beam", "beam": 3, "length_penalty": 0.7, "beam_groups": 1, "diversity": 0.0, "temperature": 1.0,
        "top_k": 0, "top_p": 1.0, "seed": 5, "block_ngrams": 0, "max_length": 6,
    }  # fmt: skip
    return SearchOptions(**{**plain, **changes})  # type: ignore[arg-type]


def check(found: Sequence[Hypothesis], expected: Sequence[Found]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.words == other.words
        assert one.finished == other.finished
        assert one.log_probability == pytest.approx(other.log, rel=1e-5)
        if other.words:
            np.testing.assert_allclose(one.attention, other.attention, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pooled", [frozenset(), frozenset({8})], ids=["one grid", "two grids"])
@pytest.mark.parametrize(
    "changes",
    [
        {"beam": 1},
        {"beam": 5},
        {"beam": 6, "beam_groups": 3, "diversity": 1.5},
        {"beam": 4, "block_ngrams": 1},
    ],
    ids=["greedy", "beam", "diverse", "blocked"],
)
def test_search_equals_one_by_one(make: Make, pooled: frozenset[int], changes: dict[str, object]) -> None:
    ensemble, plain = both(make, pooled=pooled)
    how, images = options(**changes), cells()
    found = find_captions(ensemble, images, how, ["0" * 64] * len(images))
    rules = (how.beam, how.length_penalty, how.max_length, how.block_ngrams, how.beam_groups, how.diversity)
    check(found, [search(plain, image, *rules) for image in images.numpy()])


def test_sampling_equals_one_by_one(make: Make) -> None:
    ensemble, plain = both(make, pooled=frozenset({21}))
    how, images = options(method="sample", temperature=1.4, top_k=8, top_p=0.95), cells()
    keys = [f"{number:064x}" for number in range(len(images))]
    keys = [key[::-1] for key in keys]
    found = find_captions(ensemble, images, how, keys)
    chances = [keyed_chances(how.seed, key, how.max_length + 1).tolist() for key in keys]
    expected = [
        sampled(plain, image, own, how.temperature, how.top_k, how.top_p)
        for image, own in zip(images.numpy(), chances, strict=True)
    ]
    check(found, expected)


def test_members_that_agree_by_score_alone_are_averaged_by_probability() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, -9.0]]), torch.tensor([[-1.0, 0.0, 0.5]])
    both_say = (sure.double().softmax(-1) + unsure.double().softmax(-1)) / 2
    torch.testing.assert_close(mean_scores([sure, unsure]).double().exp(), both_say, rtol=1e-6, atol=0)
    assert (sure + unsure).argmax() == both_say.argmax() == 0
    assert (sure + unsure)[0, 2] < (sure + unsure)[0, 1]
    assert both_say[0, 2] > both_say[0, 1]


def test_the_mean_stays_a_number_where_no_member_gives_a_word_a_chance_that_float32_holds() -> None:
    scores = [torch.tensor([[0.0, -300.0, -torch.inf]]), torch.tensor([[0.0, -400.0, -torch.inf]])]
    mean = mean_scores(scores)
    assert mean[0, 1].item() == pytest.approx(-300 - math.log(2), rel=1e-6)
    assert mean[0, 2].item() == -math.inf
    assert mean[0, 0].item() == pytest.approx(0, abs=1e-6)


def test_given_captions_are_scored_as_a_search_scores_them(
    make: Make, captions: list[list[list[int]]], padded: tuple[Tensor, Tensor]
) -> None:
    ensemble, plain = both(make, pooled=frozenset({3}))
    images = cells(3)
    output = ensemble(images, *padded, None)
    expected = []
    for image, own in enumerate(captions):
        for number, caption in enumerate(own):
            memory = plain.initial(images[image].numpy())
            for time, word in enumerate(caption[:-1]):
                logits, weights, *after = plain.step(word, images[image].numpy(), *memory)
                memory = tuple(after)
                expected.append(logits)
                np.testing.assert_allclose(output.attention[image, number, time], weights, rtol=1e-6)
    np.testing.assert_allclose(output.logits.numpy(), np.array(expected), rtol=1e-6)
    assert not output.logits.requires_grad


def test_one_member_alone_is_that_member_to_the_bit(make: Make, padded: tuple[Tensor, Tensor]) -> None:
    member = make()[0].float().eval()
    ensemble, images = Ensemble([member], [None]).eval(), cells().float()
    words = torch.tensor([1, 5, 4, 9])
    alone, together = (one.step(words, one.start(images))[:2] for one in (member, ensemble))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    first, second = (one(images[:3], *padded, None) for one in (member, ensemble))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.attention, second.attention)
    found = [beam_search(one, images, beam=3, length_penalty=0.7, max_length=6) for one in (member, ensemble)]
    for one, other in zip(*found, strict=True):
        assert (one.words, one.log_probability) == (other.words, other.log_probability)
        assert np.array_equal(one.attention, other.attention)


def test_the_order_of_members_changes_nothing_but_rounding(make: Make) -> None:
    images = cells()
    found = [
        beam_search(both(make, seeds, frozenset({8}))[0], images, beam=4, length_penalty=0.7, max_length=6)
        for seeds in (SEEDS, SEEDS[::-1], (8, 3, 21))
    ]
    for several in zip(*found, strict=True):
        assert len({one.words for one in several}) == 1
        for other in several[1:]:
            assert several[0].log_probability == pytest.approx(other.log_probability, rel=1e-6)
            np.testing.assert_allclose(several[0].attention, other.attention, atol=1e-6)


def test_each_member_counts_whatever_its_number_of_regions(make: Make) -> None:
    ensemble, _ = both(make, pooled=frozenset({8}))
    _, attention, _ = ensemble.step(torch.tensor([1, 1, 1, 1]), ensemble.start(cells()))
    assert attention.shape == (4, 12)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, dtype=torch.float64))


def test_a_pooling_given_to_all_is_given_to_each(make: Make) -> None:
    matrix = torch.from_numpy(pooling(CELLS, COARSE))
    ensemble, _ = both(make)
    assert isinstance(ensemble, Ensemble)
    images, words = cells(2), torch.tensor([1, 1])
    with_all, _, _ = ensemble.look_through(matrix).step(words, ensemble.start(images))
    ensemble.look_through(None)
    pooled = (matrix.double() @ images).contiguous()
    before, _, _ = ensemble.step(words, ensemble.start(pooled))
    torch.testing.assert_close(with_all, before)
