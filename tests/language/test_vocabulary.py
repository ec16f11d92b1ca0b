from pathlib import Path

import pytest

from pipeline.errors import DataError, MissingError, SettingsError
from pipeline.language.vocabulary import END, MARKS, PAD, START, UNKNOWN, TokenizeSettings, Vocabulary
from pipeline.settings import check

CAPTIONS = [["a", "dog", "runs"], ["a", "cat", "runs"], ["zebra", "a", "bee", "bee"]]
SETTINGS = {"min_count": 2, "max_words": None, "max_length": 40, "captions_per_image": "all", "seed": 0}


def test_marks_come_first_in_their_places() -> None:
    assert [MARKS[PAD], MARKS[START], MARKS[END], MARKS[UNKNOWN]] == ["<pad>", "<start>", "<end>", "<unk>"]
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)


def test_words_go_by_count_then_alphabet() -> None:
    assert Vocabulary.of(CAPTIONS, 1, None).words == (*MARKS, "a", "bee", "runs", "cat", "dog", "zebra")


def test_a_word_said_as_often_as_min_count_is_kept() -> None:
    assert Vocabulary.of(CAPTIONS, 2, None).words[4:] == ("a", "bee", "runs")
    assert Vocabulary.of(CAPTIONS, 3, None).words[4:] == ("a",)


def test_max_words_keeps_the_most_frequent() -> None:
    assert Vocabulary.of(CAPTIONS, 1, 2).words[4:] == ("a", "bee")


def test_encoding_adds_start_and_end_and_marks_the_unknown() -> None:
    assert Vocabulary.of(CAPTIONS, 2, None).encode(["a", "cat", "runs"]) == [1, 4, 3, 6, 2]


def test_decoding_stops_at_end_and_drops_start_and_padding() -> None:
    assert Vocabulary.of(CAPTIONS, 2, None).decode([1, 4, 0, 3, 6, 2, 5, 0]) == ["a", "<unk>", "runs"]


def test_a_caption_cannot_write_a_mark() -> None:
    vocabulary = Vocabulary.of([["<end>", "<pad>", "dog"]], 1, None)
    assert len(vocabulary) == 5
    assert vocabulary.encode(["<end>", "<pad>", "dog"]) == [START, UNKNOWN, UNKNOWN, 4, END]


def test_the_fingerprint_is_that_of_words_and_order() -> None:
    one, other = Vocabulary((*MARKS, "a", "b")), Vocabulary((*MARKS, "b", "a"))
    assert len(one.fingerprint) == 64
    assert one.fingerprint == Vocabulary((*MARKS, "a", "b")).fingerprint != other.fingerprint


def test_a_written_vocabulary_reads_back(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of([*CAPTIONS, ["café"]], 1, None)
    vocabulary.write(tmp_path / "vocabulary.json")
    assert Vocabulary.read(tmp_path / "vocabulary.json") == vocabulary


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"words": 3}',
        '{"words": ["a", "b"]}',
        '{"words": ["<pad>", "<start>", "<end>", "<unk>", "a", "a"]}',
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a vocabulary.*dvc repro -f tokenize"):
        Vocabulary.read(tmp_path / "vocabulary.json")


def test_a_missing_vocabulary_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="dvc repro tokenize"):
        Vocabulary.read(tmp_path / "vocabulary.json")


@pytest.mark.parametrize("captions", ["all", 1, 5])
def test_captions_per_image_is_all_or_a_number(captions: object) -> None:
    document = {"tokenize": {**SETTINGS, "captions_per_image": captions}}
    settings = check({"tokenize": TokenizeSettings}, document, Path("params.yaml"))["tokenize"]
    assert settings.captions_per_image == captions


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captions_per_image", "some", "expected all or a whole number at least 1 .*, found 'some'"),
        ("captions_per_image", 0, "0 is out of range; expected at least 1"),
        ("captions_per_image", 2.5, "expected all or a whole number"),
        ("max_words", 0, "out of range"),
        ("min_count", 0, "out of range"),
        ("max_length", None, "expected a whole number"),
    ],
)
def test_impossible_settings_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check({"tokenize": TokenizeSettings}, {"tokenize": {**SETTINGS, key: value}}, Path("params.yaml"))
