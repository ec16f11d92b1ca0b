"""Captions that end in a word which calls for another."""

import pytest

from pipeline.scoring.fragments import ARTICLES, CONJUNCTIONS, OPEN, PREPOSITIONS, fragments


@pytest.mark.parametrize("last", ["a", "the", "of", "in", "on", "with", "and", "while"])
def test_an_article_a_preposition_and_a_conjunction_make_a_fragment(last: str) -> None:
    assert fragments([["a", "dog", "runs", last]]) == 100


@pytest.mark.parametrize("last", ["dog", "outside", "up", "grass", "<unk>"])
def test_nouns_and_adverbs_do_not(last: str) -> None:
    assert fragments([["on", "the", last]]) == 0


def test_the_share_is_in_percent_and_only_last_words_count() -> None:
    captions = [["a", "red", "dot"], ["a", "dot", "of", "a"], ["in"], ["with", "a", "dot"], [], ["a", "dot"], ["dot"]]
    assert fragments(captions) == pytest.approx(100 * 2 / 7)


def test_the_lists_hold_single_words_in_lower_case_and_none_twice() -> None:
    assert len(OPEN) == len(ARTICLES) + len(PREPOSITIONS) + len(CONJUNCTIONS)
    assert all(word.isalpha() and word.islower() for word in OPEN)
