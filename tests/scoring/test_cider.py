import numpy as np
import pytest

from pipeline.scoring.cider import CiderD
from tests.scoring.golden import Case, cases


@pytest.mark.parametrize("case", cases(), ids=range(len(cases())))
def test_cider_of_each_image_equals_pycocoevalcaps(case: Case) -> None:
    scores = CiderD(case.references).score(case.hypotheses)
    np.testing.assert_allclose(scores, case.cider, rtol=1e-9, atol=1e-13)


def test_images_may_be_scored_in_any_order_and_more_than_once() -> None:
    case = cases()[5]
    images = [2, 0, 2, 1]
    whole = CiderD(case.references).score(case.hypotheses)
    some = CiderD(case.references).score([case.hypotheses[image] for image in images], images)
    np.testing.assert_array_equal(some, whole[images])


def test_agreement_is_the_score_of_every_caption_against_every_image() -> None:
    case = cases()[5]
    judge, images = CiderD(case.references), [2, 0, 1]
    found = judge.agreement(case.hypotheses[:2], images)
    for place, image in enumerate(images):
        np.testing.assert_array_equal(found[:, place], judge.score(case.hypotheses[:2], [image] * 2))


def test_the_same_words_as_every_reference_score_ten() -> None:
    references = [[["a", "dog", "runs", "fast"]], [["one", "red", "ball", "lies"]]]
    np.testing.assert_allclose(CiderD(references).score([image[0] for image in references]), [10, 10])


def test_a_single_image_scores_nothing() -> None:
    words = ["a", "dog", "runs", "fast"]
    assert CiderD([[words]]).score([words]).tolist() == [0]


def test_as_many_captions_as_images_are_required() -> None:
    with pytest.raises(ValueError, match="longer"):
        CiderD([[["a"]], [["b"]]]).score([["a"]])
