import pytest
from nltk.translate.bleu_score import corpus_bleu

from pipeline.scoring.bleu import bleu, closest_length
from tests.scoring.golden import Case, cases


@pytest.mark.parametrize("case", cases(), ids=range(len(cases())))
def test_bleu_equals_pycocoevalcaps(case: Case) -> None:
    assert bleu(case.hypotheses, case.references) == pytest.approx(case.bleu, rel=1e-9, abs=0)


def test_bleu_equals_nltks_where_no_caption_is_short() -> None:
    case = max(cases(), key=lambda case: len(case.hypotheses))
    long = [number for number, words in enumerate(case.hypotheses) if len(words) >= 4]
    said, known = [case.hypotheses[number] for number in long], [case.references[number] for number in long]
    for n, score in enumerate(bleu(said, known), start=1):
        assert score == pytest.approx(corpus_bleu(known, said, [1 / n] * n), rel=1e-8)


def test_of_two_equally_near_lengths_the_shorter_counts() -> None:
    assert closest_length(5, [7, 3, 9]) == 3
    assert closest_length(6, [9, 7, 3]) == 7


def test_a_reference_is_required_for_every_caption() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bleu([["a"], ["b"]], [[["a"]]])
