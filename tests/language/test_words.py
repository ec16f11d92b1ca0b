import json
import shutil
from pathlib import Path

import pytest

from pipeline.language.words import PUNCTUATION, tokenize

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "words.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "words"), GOLDEN, ids=range(len(GOLDEN)))
def test_words_are_those_of_the_java_tokenizer(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_golden_words_are_what_java_says_here() -> None:
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="pycocoevalcap is not installed")
    captions = {number: [{"caption": text}] for number, (text, _) in enumerate(GOLDEN)}
    split = module.PTBTokenizer().tokenize(captions)
    assert [split[number][0].split() for number in captions] == [words for _, words in GOLDEN]


@pytest.mark.parametrize("text", [text for text, _ in GOLDEN], ids=range(len(GOLDEN)))
def test_no_word_is_punctuation_or_holds_a_blank_or_a_capital(text: str) -> None:
    for word in tokenize(text):
        assert word not in PUNCTUATION
        assert word.split() == [word]
        assert word == word.lower()


def test_words_said_again_stay_the_same() -> None:
    text = "Don't they (both) wear O'Brien's T-shirts, Mr. X? We cannot say!! It's the U.S. team"
    assert tokenize(" ".join(tokenize(text))) == tokenize(text)


@pytest.mark.parametrize("text", ["", "   ", "\n", " . ", "-- , ...", "\U0001f600"])
def test_a_text_without_words_gives_none(text: str) -> None:
    assert tokenize(text) == []


def test_a_line_break_is_a_blank() -> None:
    assert tokenize("a dog\nruns\r\nfast") == ["a", "dog", "runs", "fast"]


def test_a_mixed_fraction_is_two_words() -> None:
    assert tokenize("2 1/2 dogs") == ["2", "1/2", "dogs"]
