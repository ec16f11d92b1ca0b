"""The stage `tokenize`: captions into words, words into numbers.

Reads `data/dataset/`, writes `data/tokens/`: `vocabulary.json`, from training captions only, and `captions.npz`, the
captions of training and validation images.
"""

import click

from pipeline.datasets.dataset import Dataset, read_dataset
from pipeline.errors import DataError
from pipeline.files import Workspace, replacing_folder, sha256
from pipeline.language.captions import EncodedCaptions, Words, choose, short_enough
from pipeline.language.vocabulary import UNKNOWN, TokenizeSettings, Vocabulary
from pipeline.language.words import tokenize


def run(workspace: Workspace, settings: TokenizeSettings) -> None:
    """Write `data/tokens/`.

    Raises:
        MissingError: ingest has not run.
        DataError: no training caption has a word, or none that is said often enough.
    """
    dataset = read_dataset(workspace.dataset)
    spoken = {row: [tokenize(text) for text in dataset.examples[row].captions] for row in _rows(dataset)}
    training = dataset.rows("train")
    vocabulary = Vocabulary.of(
        (words for row in training for words in spoken[row]), settings.min_count, settings.max_words
    )
    kept: dict[int, list[Words]] = {row: [words for words in captions if words] for row, captions in spoken.items()}
    kept |= {row: _of_training(spoken[row], dataset.examples[row].id, settings) for row in training}
    rows = [row for row, captions in kept.items() for _ in captions]
    numbers = [vocabulary.encode(words) for captions in kept.values() for words in captions]
    encoded = EncodedCaptions.of(rows, numbers, sha256(workspace.dataset / "dataset.jsonl"))
    if not any(kept[row] for row in training):
        raise DataError(
            f"None of the {len(training):,} training images in {workspace.dataset} has a caption with a word in it. "
            "Check data.captions and data.splits in params.yaml."
        )
    if not vocabulary.ids:
        raise DataError(
            f"Every word of the training captions in {workspace.dataset} is rarer than tokenize.min_count "
            f"({settings.min_count}), so there is none to learn. Lower tokenize.min_count in params.yaml."
        )
    with replacing_folder(workspace.tokens) as folder:
        vocabulary.write(folder / "vocabulary.json")
        encoded.write(folder / "captions.npz")
    _tell(dataset, spoken, kept, vocabulary)


def _rows(dataset: Dataset) -> list[int]:
    return sorted(dataset.rows("train") + dataset.rows("validation"))


def _of_training(captions: list[list[str]], image: str, settings: TokenizeSettings) -> list[Words]:
    return choose(short_enough(captions, settings.max_length), settings.captions_per_image, settings.seed, image)


def _tell(
    dataset: Dataset, spoken: dict[int, list[list[str]]], kept: dict[int, list[Words]], vocabulary: Vocabulary
) -> None:
    training = dataset.rows("train")
    given = sum(len(spoken[row]) for row in training)
    captions = [words for row in training for words in kept[row]]
    numbers = [number for words in captions for number in vocabulary.encode(words)[1:-1]]
    click.echo(
        f"{len(captions):,} captions of {len(training):,} training images (from {given:,}), "
        f"{sum(len(kept[row]) for row in dataset.rows('validation')):,} of validation images. "
        f"The vocabulary has {len(vocabulary):,} entries; {numbers.count(UNKNOWN) / len(numbers):.2%} of the training "
        "words are unknown."
    )
    silent = [dataset.examples[row].id for row, captions in kept.items() if not captions]
    if silent:
        click.echo(
            f"{len(silent):,} images have no caption with a word in it and are left out: {', '.join(silent[:10])}"
        )
