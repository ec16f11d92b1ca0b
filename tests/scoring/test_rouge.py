import pytest

from pipeline.scoring.rouge import rouge_l
from tests.scoring.golden import Case, cases


@pytest.mark.parametrize("case", cases(), ids=range(len(cases())))
def test_rouge_l_equals_pycocoevalcaps(case: Case) -> None:
    assert rouge_l(case.hypotheses, case.references) == pytest.approx(case.rouge_l, rel=1e-9, abs=0)


def test_precision_and_recall_are_taken_from_different_references() -> None:
    score = rouge_l([["a", "b", "c", "d"]], [[["a", "b"], ["x", "a", "b", "c", "y", "z"]]])
    precision, recall = 3 / 4, 2 / 2
    assert score == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


def test_an_empty_caption_scores_nothing() -> None:
    assert rouge_l([[]], [[["a", "dog"]]]) == 0
