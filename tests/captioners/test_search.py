"""Batched beam search equals the one-by-one search, caption for caption."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners.captioner import Captioner, Output
from pipeline.captioners.search import Hypothesis, beam_search
from tests.captioners.conftest import Make
from tests.captioners.reference import PlainSoft, log_softmax

END = 2


class Beam(NamedTuple):
    log: float
    words: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    hidden: np.ndarray
    cell: np.ndarray


def one_by_one(
    plain: PlainSoft, regions: np.ndarray, beam: int, penalty: float, most: int
) -> tuple[tuple[int, ...], float, np.ndarray, bool]:
    """One image, one caption at a time: what the batched search must find."""
    regions = plain.regions(regions)
    beams = [Beam(0.0, (), (), *plain.initial(regions))]
    finished: list[tuple[float, Beam, float]] = []
    for time in range(most + 1):
        candidates = []
        for parent in beams:
            word = parent.words[-1] if parent.words else 1
            logits, weights, hidden, cell = plain.step(word, regions, parent.hidden, parent.cell)
            logits = logits.copy()
            logits[[0, 1, 3]] = -math.inf
            for said, log in enumerate(log_softmax(logits)):
                if log > -math.inf:
                    grown = Beam(parent.log + log, (*parent.words, said), (*parent.weights, weights), hidden, cell)
                    candidates.append(grown)
        candidates.sort(key=lambda candidate: -candidate.log)
        ended = [candidate for candidate in candidates[:beam] if candidate.words[-1] == END]
        finished += [(candidate.log / (time + 1) ** penalty, candidate, candidate.log) for candidate in ended]
        if time == most or len(finished) >= beam:
            break
        beams = [candidate for candidate in candidates[: 2 * beam] if candidate.words[-1] != END][:beam]
    if finished:
        best = max(finished, key=lambda entry: entry[0])
        return best[1].words[:-1], best[2], np.array(best[1].weights[:-1]).reshape(-1, len(regions)), True
    return beams[0].words, beams[0].log, np.array(beams[0].weights), False


@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("seed", [3, 8, 21])
def test_batched_search_equals_one_by_one(make: Make, beam: int, penalty: float, seed: int) -> None:
    captioner, plain = make(seed=seed)
    regions = torch.randn(5, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = beam_search(captioner.eval(), regions, beam=beam, length_penalty=penalty, max_length=6)
    for image, hypothesis in enumerate(found):
        words, log, weights, finished = one_by_one(plain, regions[image].numpy(), beam, penalty, 6)
        assert hypothesis.words == words
        assert hypothesis.finished == finished
        assert hypothesis.log_probability == pytest.approx(log, rel=1e-5)
        if words:
            np.testing.assert_allclose(hypothesis.attention, weights, rtol=1e-5, atol=1e-7)


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

    def step(self, words: Tensor, state: "Counter") -> tuple[Tensor, Tensor, "Counter"]:  # type: ignore[override]  # noqa: ARG002
        time = state.time.clamp(max=len(self.table) - 1)
        return self.table[time], torch.nn.functional.one_hot(state.time, 9).float(), Counter(state.time + 1)

    def forward(self, regions: Tensor, captions: Tensor, lengths: Tensor, generator: torch.Generator | None) -> Output:  # noqa: ARG002
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
