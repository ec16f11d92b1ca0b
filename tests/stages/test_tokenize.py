from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets.dataset import Example, Split, write_dataset
from pipeline.errors import DataError, MissingError
from pipeline.files import Workspace
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import TokenizeSettings, Vocabulary
from stages.tokenize import run

IMAGES: list[tuple[str, Split, list[str]]] = [
    ("one.jpg", "train", ["A dog runs.", "The dog is running!", "A dog"]),
    ("two.jpg", "test", ["A secret word", "secret"]),
    ("three.jpg", "validation", ["A hidden dog runs and runs and runs", "..."]),
    ("four.jpg", "train", ["A cat sleeps on the very wide green sofa", "..."]),
]


def settings(**changes: Any) -> TokenizeSettings:
    plain: dict[str, Any] = {
        "min_count": 1,
        "max_words": None,
        "max_length": 5,
        "captions_per_image": "all",
        "seed": 0,
    }
    return TokenizeSettings(**{**plain, **changes})


def workspace(root: Path, images: list[tuple[str, Split, list[str]]] = IMAGES) -> Workspace:
    place = Workspace(root)
    place.dataset.mkdir(parents=True)
    write_dataset(
        place.dataset,
        [Example(name, name, split, tuple(captions), "0" * 64) for name, split, captions in images],
        {"format": "csv", "drawn": False, "skipped": []},
    )
    return place


def read(place: Workspace) -> tuple[Vocabulary, EncodedCaptions]:
    return Vocabulary.read(place.tokens / "vocabulary.json"), EncodedCaptions.read(place.tokens / "captions.npz")


def spoken(place: Workspace) -> list[tuple[int, str]]:
    vocabulary, captions = read(place)
    return [
        (row, " ".join(vocabulary.decode(line)))
        for row, line in zip(captions.row.tolist(), captions.words.tolist(), strict=True)
    ]


def test_training_and_validation_captions_are_written_in_order(tmp_path: Path) -> None:
    place = workspace(tmp_path)
    run(place, settings())
    assert spoken(place) == [
        (0, "a dog runs"),
        (0, "the dog is running"),
        (0, "a dog"),
        (2, "a <unk> dog runs <unk> runs <unk> runs"),
        (3, "a cat sleeps on the"),
    ]
    assert read(place)[1].lengths.tolist() == [5, 6, 4, 10, 7]


def test_the_vocabulary_counts_training_captions_only(tmp_path: Path) -> None:
    place = workspace(tmp_path)
    run(place, settings())
    words = read(place)[0].words
    assert words[4:7] == ("a", "dog", "the")
    assert "sofa" in words
    assert not {"secret", "hidden", "word", "and"} & set(words)


def test_captions_per_image_applies_to_training_only(tmp_path: Path) -> None:
    place = workspace(tmp_path)
    run(place, settings(captions_per_image=2))
    assert [row for row, _ in spoken(place)] == [0, 0, 2, 3, 3]


def test_other_images_do_not_change_a_choice(tmp_path: Path) -> None:
    whole, part = workspace(tmp_path / "whole"), workspace(tmp_path / "part", IMAGES[:1])
    for place in (whole, part):
        run(place, settings(captions_per_image=2, seed=3))
    assert spoken(whole)[:2] == spoken(part)


def test_the_same_captions_give_the_same_bytes(tmp_path: Path) -> None:
    places = [workspace(tmp_path / name) for name in ("one", "other")]
    for place in places:
        run(place, settings(captions_per_image=4))
    for name in ("vocabulary.json", "captions.npz"):
        one, other = ((place.tokens / name).read_bytes() for place in places)
        assert one == other


def test_the_counts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(workspace(tmp_path), settings(min_count=2, max_length=4))
    told = capsys.readouterr().out
    # a, dog and the are known: of 3 + 4 + 2 + 4 words all but runs, is, running, cat, sleeps and on.
    assert "4 captions of 2 training images (from 5), 1 of validation images." in told
    assert "The vocabulary has 7 entries; 46.15% of the training words are unknown." in told


def test_images_without_a_word_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = workspace(tmp_path, [*IMAGES, ("mute.jpg", "train", ["!", "--"])])
    run(place, settings())
    assert "1 images have no caption with a word in it and are left out: mute.jpg" in capsys.readouterr().out
    assert 4 not in read(place)[1].row


def test_training_images_without_a_word_stop_the_stage(tmp_path: Path) -> None:
    place = workspace(tmp_path, [("mute.jpg", "train", ["."]), *IMAGES[1:3]])
    with pytest.raises(DataError, match="None of the 1 training images"):
        run(place, settings())
    assert not place.tokens.exists()


def test_words_that_are_all_too_rare_stop_the_stage_and_name_the_setting(tmp_path: Path) -> None:
    place = workspace(tmp_path)  # "a", the most frequent, stands in three training captions
    with pytest.raises(DataError, match=r"rarer than tokenize\.min_count \(4\), .* Lower tokenize\.min_count"):
        run(place, settings(min_count=4))
    assert not place.tokens.exists()
    run(place, settings(min_count=3))


def test_tokenize_before_ingest_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="dvc repro ingest"):
        run(Workspace(tmp_path), settings())
