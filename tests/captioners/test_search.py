"""Batched beam search equals the one-by-one search, caption for caption."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners import search as search_module
from pipeline.captioners.captioner import Captioner, Output
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.search import beam_search, likeliest
from tests.captioners.conftest import Make
from tests.captioners.one_by_one import repeats, search


def check_against_one_by_one(
    make: Make, seed: int, beam: int, penalty: float, block: int = 0, groups: int = 1, diversity: float = 0.0
) -> list[Hypothesis]:
    captioner, plain = make(seed=seed)
    regions = torch.randn(5, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = beam_search(
        captioner.eval(),
        regions,
        beam=beam,
        length_penalty=penalty,
        max_length=6,
        block_ngrams=block,
        groups=groups,
        diversity=diversity,
    )
    for image, hypothesis in enumerate(found):
        expected = search(plain, regions[image].numpy(), beam, penalty, 6, block, groups, diversity)
        assert hypothesis.words == expected.words
        assert hypothesis.finished == expected.finished
        assert hypothesis.log_probability == pytest.approx(expected.log, rel=1e-5)
        if expected.words:
            np.testing.assert_allclose(hypothesis.attention, expected.attention, rtol=1e-5, atol=1e-7)
    return found


@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("seed", [3, 8, 21])
def test_batched_search_equals_one_by_one(make: Make, beam: int, penalty: float, seed: int) -> None:
    check_against_one_by_one(make, seed, beam, penalty)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("seed", [3, 8, 21])
def test_search_without_repeated_ngrams_equals_one_by_one(make: Make, block: int, beam: int, seed: int) -> None:
    for hypothesis in check_against_one_by_one(make, seed, beam, 0.7, block=block):
        assert not repeats(hypothesis.words, block)


def test_without_blocking_there_are_ngrams_to_block(make: Make) -> None:
    found = [one for seed in (3, 8, 21) for one in check_against_one_by_one(make, seed, 4, 0.7)]
    for size in (1, 2, 3):
        assert any(repeats(one.words, size) for one in found)


@pytest.mark.parametrize(("beam", "groups"), [(2, 2), (4, 2), (6, 3), (6, 2)])
@pytest.mark.parametrize("diversity", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", [3, 8])
def test_diverse_search_equals_one_by_one(make: Make, beam: int, groups: int, diversity: float, seed: int) -> None:
    check_against_one_by_one(make, seed, beam, 0.7, groups=groups, diversity=diversity)


def test_all_options_together_equal_one_by_one(make: Make) -> None:
    check_against_one_by_one(make, 21, 6, 1.3, block=2, groups=3, diversity=1.5)


def test_groups_without_diversity_find_what_one_group_finds_with_its_width(make: Make) -> None:
    found = check_against_one_by_one(make, 8, 6, 0.7, groups=3, diversity=0.0)
    alone = check_against_one_by_one(make, 8, 2, 0.7)
    assert [one.words for one in found] == [one.words for one in alone]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_when_images_leave_the_batch_changes_no_caption(
    make: Make, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(search_module, "WORTH_LEAVING", share)
    check_against_one_by_one(make, 3, 3, 0.7)
    check_against_one_by_one(make, 8, 4, 0.7, block=2, groups=2, diversity=1.0)


@pytest.mark.parametrize(("captions", "size"), [(1, 70), (1, 700), (5, 128), (5, 333), (3, 1025)])
@pytest.mark.parametrize("count", [2, 10])
def test_the_likeliest_of_many_words_are_those_of_a_sort(captions: int, size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logs = torch.randn(4, captions, size, generator=generator)
    logs[:, :, [0, 1, 3]] = -torch.inf
    logs[1, :, : size // 64 * 64] -= 50  # all in the words behind the last chunk
    logs[2, :, 64:] -= 50  # all in one chunk
    scores = torch.randn(4, captions, generator=generator)
    scores[3, 1:] = -torch.inf
    values, parents, words = likeliest(scores, logs, count)
    totals = (scores[..., None] + logs).flatten(1)
    expected = totals.sort(1, descending=True).values[:, :count]
    assert torch.equal(values, expected)
    real = expected.isfinite()
    assert torch.equal(totals.gather(1, parents * size + words)[real], expected[real])
    assert all(len({*row.tolist()}) == count for row in (parents * size + words)[:3])


def test_an_image_is_captioned_alone_as_in_a_batch(make: Make) -> None:
    captioner, _ = make()
    regions = torch.randn(4, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = beam_search(captioner, regions, beam=3, length_penalty=0.7, max_length=9)
    alone = [beam_search(captioner, one[None], beam=3, length_penalty=0.7, max_length=9)[0] for one in regions]
    assert [hypothesis.words for hypothesis in together] == [hypothesis.words for hypothesis in alone]


class Scripted(Captioner):
    """Says what a table tells it after so many words, whatever the image; attention names the step."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table).log()

    def start(self, regions: Tensor) -> "Counter":
        return Counter(torch.zeros(len(regions), dtype=torch.long))

    def step(self, words: Tensor, state: "Counter") -> tuple[Tensor, Tensor, "Counter"]:  # type: ignore[override]
        time = state.time.clamp(max=len(self.table) - 1)
        return self.table[time], torch.nn.functional.one_hot(state.time, 9).float(), Counter(state.time + 1)

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:
        raise AssertionError("search never looks at given captions")


class Counter(NamedTuple):
    time: Tensor

    def select(self, rows: Tensor) -> "Counter":
        return Counter(self.time[rows])


def say(table: list[list[float]], beam: int, penalty: float = 0.0, most: int = 5) -> Hypothesis:
    return beam_search(Scripted(table), torch.zeros(1, 2, 3), beam=beam, length_penalty=penalty, max_length=most)[0]


def test_a_caption_that_never_ends_is_returned_unfinished() -> None:
    hypothesis = say([[0.1, 0.1, 1e-30, 0.1, 0.5, 0.3]], beam=2, most=4)
    assert hypothesis.words == (4, 4, 4, 4)
    assert not hypothesis.finished
    assert hypothesis.log_probability == pytest.approx(4 * math.log(0.5 / 0.8), rel=1e-5)
    assert hypothesis.attention.argmax(1).tolist() == [0, 1, 2, 3]


def test_marks_are_never_said() -> None:
    assert say([[0.3, 0.3, 1e-9, 0.3, 0.1]], beam=1, most=3).words == (4, 4, 4)


def test_the_length_penalty_counts_the_end() -> None:
    # "END" at once has log p = log 0.4; "4 END" has log 0.6 * 0.55 = log 0.33.
    table = [[0.0, 0.0, 0.4, 0.0, 0.6], [0.0, 0.0, 0.55, 0.0, 0.45]]
    assert say(table, beam=2, penalty=0.0).words == ()
    assert say(table, beam=2, penalty=1.0).words == (4,)  # log 0.33 / 2 > log 0.4 / 1
    # between the two: log 0.33 / 2^a = log 0.4 at a = log2(log 0.33 / log 0.4)
    border = math.log2(math.log(0.33) / math.log(0.4))
    assert say(table, beam=2, penalty=border - 0.01).words == ()
    assert say(table, beam=2, penalty=border + 0.01).words == (4,)


def test_a_caption_that_ends_much_later_may_still_rank_higher() -> None:
    # After a word even the likeliest ranks at log 0.13 / 2 = -1.02 below the END said at once, log 0.4 = -0.92; with
    # two sure words more it ends at log 0.13 / 4 = -0.51. With little to say left, it could not get there.
    table = [[0, 0, 0.4, 0, 0.13, 0.12, 0.1], [0, 0, 1e-9, 0, 0.99, 0.005, 0.005]]
    table += [table[1], [0, 0, 0.99, 0, 0.005, 0.003, 0.002]]
    assert say(table, beam=3, penalty=1.0).words == (4, 4, 4)
    assert say(table, beam=3, penalty=1.0, most=2).words == ()


def test_all_captions_that_end_in_a_step_count_as_finished() -> None:
    # After two words "4 END" and "5 END" have both finished: the search is over, though "4 4 END" would rank higher.
    table = [[0, 0, 0.1, 0, 0.5, 0.4], [0, 0, 0.6, 0, 0.25, 0.15], [0, 0, 0.98, 0, 0.01, 0.01]]
    assert say(table, beam=2, penalty=2.0).words == (4,)


def test_of_captions_that_rank_alike_the_first_to_finish_is_taken() -> None:
    table = [[0, 0, 0.25, 0, 0.5, 0.125, 0.125], [0, 0, 0.5, 0, 0.25, 0.125, 0.125]]
    assert say(table, beam=2).words == ()


@pytest.mark.parametrize("beam", [4, 7])
def test_a_beam_wider_than_the_vocabulary_finishes_no_caption_that_does_not_exist(beam: int) -> None:
    # Two words can be said at first; the other places of the beam are empty and may not count as finished.
    table = [[0, 0, 0.6, 0, 0.4], [0, 0, 0.001, 0, 0.999], [0, 0, 0.999, 0, 0.001]]
    assert say(table, beam=beam, penalty=3.0).words == (4, 4)


def test_one_word_at_most_is_said() -> None:
    table = [[0, 0, 0.1, 0, 0.9], [0, 0, 0.2, 0, 0.8]]
    hypothesis = say(table, beam=1, most=1)
    assert (hypothesis.words, hypothesis.finished) == ((4,), False)


def test_a_caption_without_words_has_attention_of_no_rows_over_all_regions() -> None:
    hypothesis = say([[0, 0, 0.9, 0, 0.1]], beam=1)
    assert hypothesis.words == ()
    assert hypothesis.attention.shape == (0, 9)
